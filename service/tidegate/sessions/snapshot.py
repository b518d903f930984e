"""A session as portable bytes, and back: versioned, checksummed, with every size, dtype and shape said and checked.

Layout: 8 bytes magic, 2 bytes version (little-endian), 32 bytes SHA-256 of the rest, the rest: a ``SnapshotBody``
(`proto/tidegate/v1/records.proto`). Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError

from tidegate.engine.arena import Plane, unpack
from tidegate.errors import FailedPreconditionError, InvalidInputError
from tidegate.v1 import records_pb2

Body = records_pb2.SnapshotBody

MAGIC = b"TIDEGATE"
VERSION = 1
_HEADER = struct.Struct("<8sH32s")


def encode_snapshot(body: Body) -> bytes:
    content = body.SerializeToString()
    return _HEADER.pack(MAGIC, VERSION, hashlib.sha256(content).digest()) + content


def decode_snapshot(snapshot: bytes) -> Body:
    """Return the body of a snapshot.

    Raises:
        InvalidInputError: ``BAD_SNAPSHOT``: it is not one, or was cut off or altered.
        FailedPreconditionError: ``NEWER_FORMAT``: a newer tidegate made it.
    """
    if len(snapshot) < _HEADER.size or not snapshot.startswith(MAGIC):
        raise _bad("these bytes are not a snapshot of a session")
    _, version, checksum = _HEADER.unpack_from(snapshot)
    if version != VERSION:
        raise FailedPreconditionError(
            f"the snapshot has format {version}, this server reads {VERSION}", reason="NEWER_FORMAT"
        )
    content = snapshot[_HEADER.size :]
    if hashlib.sha256(content).digest() != checksum:
        raise _bad("the snapshot was cut off or altered: its checksum is wrong")
    try:
        return Body.FromString(content)
    except DecodeError as error:
        raise _bad("the snapshot cannot be read") from error


def fill_parts(body: Body, names: Sequence[str], planes: Sequence[Plane], state: bytes) -> None:
    """Describe a state (as the arena dumps it; empty at position 0) part by part."""
    for name, plane, array in zip(names, planes, unpack(planes, state), strict=True) if state else ():
        body.parts.add(name=name, dtype=plane.dtype.name, shape=plane.row_shape, data=array.tobytes())


def state_of(body: Body, names: Sequence[str], planes: Sequence[Plane]) -> bytes:
    """Return the state that `fill_parts` described.

    Raises:
        InvalidInputError: It does not fit the model that has parts of these ``names`` and ``planes``.
    """
    if body.position == 0 and not body.parts:
        return b""
    if body.position == 0 or [part.name for part in body.parts] != list(names):
        raise _bad(f"the snapshot's state has other parts than the model's {', '.join(names)}")
    for part, plane in zip(body.parts, planes, strict=True):
        told = (part.dtype, tuple(part.shape), len(part.data))
        if told != (plane.dtype.name, plane.row_shape, plane.row_bytes):
            raise _bad(
                f"{part.name} is {part.dtype}{list(part.shape)}, the model's {plane.dtype}{list(plane.row_shape)}"
            )
        if plane.dtype.kind == "f" and not np.isfinite(np.frombuffer(part.data, plane.dtype)).all():
            raise _bad(f"{part.name} holds numbers that are not finite")
    return b"".join(part.data for part in body.parts)


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, reason="BAD_SNAPSHOT")
