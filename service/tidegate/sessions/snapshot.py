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

from tidegate.api import LAST_POSITION, LATEST
from tidegate.config import LONGEST_LIFE
from tidegate.engine.arena import Plane, unpack
from tidegate.errors import FailedPreconditionError, InvalidInputError
from tidegate.v1 import records_pb2

Body = records_pb2.SnapshotBody

MAGIC = b"TIDEGATE"
VERSION = 1
_HEADER = struct.Struct("<8sH32s")

_MOST_POSITION = LAST_POSITION - (1 << 32)
"""What is restored from a snapshot has four billion steps before it."""

_MOST_CHARACTERS = {"model": 128, "version": 9, "model_sha256": 64, "forked_from": 300}
_MOST_BESIDE_STATE = 4096
"""Bytes of a snapshot beside its state and the names, dtypes and shapes of its parts."""


def encode_snapshot(body: Body) -> bytes:
    content = body.SerializeToString()
    return _HEADER.pack(MAGIC, VERSION, hashlib.sha256(content).digest()) + content


def decode_snapshot(snapshot: bytes) -> Body:
    """Return the body of a snapshot, each of its fields within its bounds. Whether the state fits, `state_of` says.

    The checksum has no key: it shows an accident, not a forgery.

    Raises:
        InvalidInputError: ``BAD_SNAPSHOT``: it is not one, was cut off or altered, or a field is out of bounds.
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
        body = Body.FromString(content)
    except DecodeError as error:
        raise _bad("the snapshot cannot be read") from error
    _check_fields(body)
    return body


def _check_fields(body: Body) -> None:
    for name, most in _MOST_CHARACTERS.items():
        text: str = getattr(body, name)
        if len(text) > most or not text.isprintable():
            raise _bad(f"the snapshot's {name} is not a text of at most {most} printable characters")
    if body.position > _MOST_POSITION:
        raise _bad(f"the snapshot's position is over {_MOST_POSITION}")
    if not 0 <= body.created_at <= LATEST:
        raise _bad("the snapshot's created_at is not a time in seconds since the epoch")
    lifetimes = (
        ("ttl_seconds", body.ttl_seconds if body.HasField("ttl_seconds") else None),
        ("idle_seconds", body.idle_seconds if body.HasField("idle_seconds") else None),
    )
    for name, seconds in lifetimes:
        if seconds is not None and not 0 < seconds <= LONGEST_LIFE:
            raise _bad(f"the snapshot's {name} is not a positive number of seconds, at most {LONGEST_LIFE:.0f}")


def fill_parts(body: Body, names: Sequence[str], planes: Sequence[Plane], state: bytes) -> None:
    """Describe a state (as the arena dumps it; empty at position 0) part by part."""
    for name, plane, array in zip(names, planes, unpack(planes, state), strict=True) if state else ():
        body.parts.add(name=name, dtype=plane.dtype.name, shape=plane.row_shape, data=array.tobytes())


def state_of(body: Body, names: Sequence[str], planes: Sequence[Plane]) -> bytes:
    """Return the state that `fill_parts` described.

    Raises:
        InvalidInputError: It does not fit the model that has parts of these ``names`` and ``planes``.
    """
    if [part.name for part in body.parts] != (list(names) if body.position else []):
        raise _bad(f"the snapshot's state has other parts than the model's {', '.join(names)}")
    expected = _MOST_BESIDE_STATE
    for part, plane in zip(body.parts, planes, strict=False):  # none at position 0
        # What is there instead may be megabytes long: only what should be there is told.
        told = (part.dtype, tuple(part.shape), len(part.data))
        if told != (plane.dtype.name, plane.row_shape, plane.row_bytes):
            raise _bad(f"{part.name} has another dtype, shape or length than {plane.dtype}{list(plane.row_shape)}")
        numbers = np.frombuffer(part.data, np.uint8 if plane.dtype.kind == "b" else plane.dtype)
        if plane.dtype.kind == "f" and not np.isfinite(numbers).all():
            raise _bad(f"{part.name} holds numbers that are not finite")
        if plane.dtype.kind == "b" and (numbers > 1).any():
            raise _bad(f"{part.name} holds bytes that are neither true nor false")
        expected += part.ByteSize()
    if body.ByteSize() > expected:
        raise _bad("the snapshot holds more than a session of its model")
    return b"".join(part.data for part in body.parts)


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, reason="BAD_SNAPSHOT")
