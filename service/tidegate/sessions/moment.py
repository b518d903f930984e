"""A session's state at one of its positions, taken out of wherever it was: what a fork, a snapshot and a checkpoint
carry. Knows how to make a snapshot of it and how to read one.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from tidegate.api import SessionRequest
from tidegate.errors import FailedPreconditionError, NotFoundError
from tidegate.registry import LoadedModel, Registry
from tidegate.sessions.snapshot import Body, decode_snapshot, encode_snapshot, fill_parts, state_of


class Moment(NamedTuple):
    """``state`` is as the arena dumps it, empty at position 0; ``source`` says where it comes from, so that an equal
    request finds what it made before.
    """

    model: LoadedModel
    position: int
    state: bytes
    seed: int
    source: str = ""

    def forked(self, source: str, child: str) -> Moment:
        """Return the moment for a child of the session ``source``."""
        return self._replace(seed=_child_seed(self.seed, child), source=_fork_of(source))


def take_snapshot(moment: Moment, request: SessionRequest, created_at: float) -> bytes:
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
    planes = moment.model.planes
    fill_parts(body, list(planes), list(planes.values()), moment.state)
    return encode_snapshot(body)


def fork_snapshot(snapshot: bytes, source: str, child: str) -> bytes:
    """Return a snapshot of the session ``source`` from which its child is restored where the child belongs."""
    body = decode_snapshot(snapshot)
    body.seed, body.forked_from = _child_seed(body.seed, child), _fork_of(source)
    return encode_snapshot(body)


def read_snapshot(snapshot: bytes, registry: Registry) -> tuple[Moment, SessionRequest]:
    """Return the moment that a snapshot holds, and how its session was opened.

    Raises:
        InvalidInputError: It is no snapshot, was altered, or does not fit its model.
        FailedPreconditionError: Its model, in its version and with its content, is not here.
    """
    body = decode_snapshot(snapshot)
    label = f"{body.model}/{body.version}"
    try:
        model = registry.get(body.model, body.version)
    except NotFoundError as error:
        message = f"the snapshot is of {label}, which is not here: {error.message}"
        raise FailedPreconditionError(message, reason="MODEL_GONE") from error
    if model.bundle.sha256 != body.model_sha256:
        message = f"the snapshot is of {label} with another content than the one here"
        raise FailedPreconditionError(message, reason="MODEL_GONE")
    state = state_of(body, list(model.planes), list(model.planes.values()))
    source = body.forked_from or f"snapshot {hashlib.sha256(snapshot).hexdigest()}"
    return Moment(model, body.position, state, body.seed, source), SessionRequest(
        body.model,
        body.version,
        ttl_seconds=body.ttl_seconds if body.HasField("ttl_seconds") else None,
        idle_seconds=body.idle_seconds if body.HasField("idle_seconds") else None,
        drift=body.drift,
    )


def _fork_of(source: str) -> str:
    return f"fork of {source}"


def _child_seed(seed: int, child: str) -> int:
    """Return a seed of the child's own, the same each time: children of one parent draw differently."""
    return int.from_bytes(hashlib.sha256(f"{seed} {child}".encode()).digest()[:8], "little")
