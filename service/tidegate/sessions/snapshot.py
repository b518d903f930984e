"""A session's state at one of its positions, and that state as portable bytes: versioned, checksummed, with every size,
dtype and shape said and checked.

Layout: 8 bytes magic, 2 bytes version (little-endian), 32 bytes SHA-256 of the rest, the rest: a ``SnapshotBody``
(`proto/tidegate/v1/records.proto`). Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from tidegate.api import LAST_POSITION, LATEST, SessionRequest
from tidegate.config import LONGEST_LIFE
from tidegate.engine.arena import Plane, unpack
from tidegate.engine.model import LoadedModel, Models
from tidegate.errors import FailedPreconditionError, InvalidInputError, NotFoundError
from tidegate.v1 import records_pb2
from tidegate.wire.settings import decode_inputs, fill_inputs

Body = records_pb2.SnapshotBody

MAGIC = b"TIDEGATE"
VERSION = 1
_HEADER = struct.Struct("<8sH32s")

_MOST_POSITION = LAST_POSITION - (1 << 32)
"""What is restored from a snapshot has four billion steps before it."""

_MOST_CHARACTERS = {"model": 128, "version": 9, "model_sha256": 64, "forked_from": 300}
_MOST_BESIDE_STATE = 4096
"""Bytes of a snapshot beside its state and the names, dtypes and shapes of its parts."""


class SessionState(NamedTuple):
    """``state`` is as the arena dumps it, empty at position 0; ``source`` says where it comes from, so that an equal
    request finds what it made before.
    """

    model: LoadedModel
    position: int
    state: bytes
    seed: int
    source: str = ""

    def forked(self, source: str, child: str) -> SessionState:
        """Return the moment for a child of the session ``source``."""
        return self._replace(seed=_child_seed(self.seed, child), source=_fork_of(source))


def take_snapshot(moment: SessionState, request: SessionRequest, created_at: float) -> bytes:
    """Return the moment as portable bytes; ``created_at`` in seconds since the epoch."""
    manifest = moment.model.manifest
    body = Body(
        model=manifest.name,
        version=manifest.version,
        model_sha256=moment.model.bundle.sha256,
        position=moment.position,
        seed=moment.seed,
        created_at=created_at,
        ttl_seconds=request.ttl_seconds,
        idle_seconds=request.idle_seconds,
        drift=request.drift,
    )
    fill_inputs(body.inputs, request.inputs)
    planes = moment.model.planes
    fill_parts(body, list(planes), list(planes.values()), moment.state)
    return encode_snapshot(body)


def fork_snapshot(snapshot: bytes, source: str, child: str) -> bytes:
    """Return a snapshot of the session ``source`` from which its child is restored where the child belongs."""
    body = decode_snapshot(snapshot)
    body.seed, body.forked_from = _child_seed(body.seed, child), _fork_of(source)
    return encode_snapshot(body)


def read_snapshot(snapshot: bytes, models: Models) -> tuple[SessionState, SessionRequest]:
    """Return the moment that a snapshot holds, and how its session was opened.

    Raises:
        InvalidInputError: It is no snapshot, was altered, or does not fit its model.
        FailedPreconditionError: Its model, in its version and with its content, is not here.
    """
    body = decode_snapshot(snapshot)
    label = f"{body.model}/{body.version}"
    try:
        model = models.get(body.model, body.version)
    except NotFoundError as error:
        message = f"the snapshot is of {label}, which is not here: {error.message}"
        raise FailedPreconditionError(message, reason="MODEL_GONE") from error
    if model.bundle.sha256 != body.model_sha256:
        message = f"the snapshot is of {label} with another content than the one here"
        raise FailedPreconditionError(message, reason="MODEL_GONE")
    inputs = decode_inputs(body.inputs)
    try:
        model.settings.encode(inputs)
    except InvalidInputError as error:
        raise _bad(f"the snapshot's {error.message}") from error
    state = state_of(body, list(model.planes), list(model.planes.values()))
    source = body.forked_from or f"snapshot {hashlib.sha256(snapshot).hexdigest()}"
    return SessionState(model, body.position, state, body.seed, source), SessionRequest(
        body.model,
        body.version,
        ttl_seconds=body.ttl_seconds if body.HasField("ttl_seconds") else None,
        idle_seconds=body.idle_seconds if body.HasField("idle_seconds") else None,
        drift=body.drift,
        inputs=inputs,
    )


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
    # That its settings are those of the model, no more, is known.
    expected = _MOST_BESIDE_STATE + sum(len(name) + value.ByteSize() for name, value in body.inputs.items())
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


def _fork_of(source: str) -> str:
    return f"fork of {source}"


def _child_seed(seed: int, child: str) -> int:
    """Return a seed of the child's own, the same each time: children of one parent draw differently."""
    return int.from_bytes(hashlib.sha256(f"{seed} {child}".encode()).digest()[:8], "little")
