"""Sessions as messages: the wish to open one, to branch or to restore it, and what is known of one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.api import CheckpointInfo, RestoreRequest, SessionInfo, SessionPage, SessionRequest
from tidegate.v1 import sessions_pb2
from tidegate.wire.predictions import decode_drift, encode_drift
from tidegate.wire.settings import decode_inputs, fill_inputs

log = logging.getLogger(__name__)


def encode_session_request(request: SessionRequest) -> sessions_pb2.OpenRequest:
    message = sessions_pb2.OpenRequest(
        model=request.model,
        version=request.version or "",
        durable=request.durable,
        ttl_seconds=request.ttl_seconds or 0,
        idle_seconds=request.idle_seconds or 0,
        id=request.id or "",
        seed=request.seed,
        drift=request.drift,
    )
    fill_inputs(message.inputs, request.inputs)
    return message


def decode_session_request(message: sessions_pb2.OpenRequest) -> SessionRequest:
    """The inverse of `encode_session_request`: empty and 0 mean not given."""
    return SessionRequest(
        model=message.model,
        version=message.version or None,
        durable=message.durable,
        ttl_seconds=message.ttl_seconds or None,
        idle_seconds=message.idle_seconds or None,
        id=message.id or None,
        seed=message.seed if message.HasField("seed") else None,
        drift=message.drift,
        inputs=decode_inputs(message.inputs),
    )


def encode_session(info: SessionInfo) -> sessions_pb2.Session:
    return sessions_pb2.Session(
        id=info.id,
        model=info.model,
        version=info.version,
        position=info.position,
        durable=info.durable,
        created_at=_encode_time(info.created_at),
        expires_at=None if info.expires_at is None else _encode_time(info.expires_at),
        state_bytes=info.state_bytes,
        checkpoints=info.checkpoints,
        origin=info.origin,
        drift=None if info.drift is None else encode_drift(info.drift),
    )


def decode_session(message: sessions_pb2.Session) -> SessionInfo:
    """The inverse of `encode_session`, times to the microsecond."""
    return SessionInfo(
        id=message.id,
        model=message.model,
        version=message.version,
        position=message.position,
        durable=message.durable,
        created_at=_decode_time(message.created_at),
        expires_at=_decode_time(message.expires_at) if message.HasField("expires_at") else None,
        state_bytes=message.state_bytes,
        checkpoints=tuple(message.checkpoints),
        origin=message.origin,
        drift=decode_drift(message.drift) if message.HasField("drift") else None,
    )


def encode_session_page(page: SessionPage) -> sessions_pb2.ListSessionsReply:
    """A session that does not fit into a message is left out, and hides no other."""
    sessions = []
    for info in page.sessions:
        try:
            sessions.append(encode_session(info))
        except Exception:
            log.exception("session %s cannot be listed", info.id)
    return sessions_pb2.ListSessionsReply(sessions=sessions, next_page_token=page.next_page_token)


def decode_session_page(message: sessions_pb2.ListSessionsReply) -> SessionPage:
    """The inverse of `encode_session_page`."""
    return SessionPage([decode_session(each) for each in message.sessions], message.next_page_token)


def encode_fork_request(
    session: str, ids: Sequence[str] | None = None, count: int | None = None
) -> sessions_pb2.ForkRequest:
    return sessions_pb2.ForkRequest(session=session, ids=ids or (), count=count or 0)


def decode_fork_request(message: sessions_pb2.ForkRequest) -> tuple[list[str] | None, int | None]:
    """The ids and the count of `encode_fork_request`: empty and 0 mean not given."""
    return list(message.ids) or None, message.count or None


def encode_forks(forks: Sequence[SessionInfo]) -> sessions_pb2.ForkReply:
    return sessions_pb2.ForkReply(sessions=[encode_session(info) for info in forks])


def decode_forks(message: sessions_pb2.ForkReply) -> list[SessionInfo]:
    """The inverse of `encode_forks`."""
    return [decode_session(each) for each in message.sessions]


def encode_checkpoint(info: CheckpointInfo) -> sessions_pb2.CheckpointReply:
    return sessions_pb2.CheckpointReply(checkpoint=info.checkpoint, position=info.position)


def decode_checkpoint(message: sessions_pb2.CheckpointReply) -> CheckpointInfo:
    """The inverse of `encode_checkpoint`."""
    return CheckpointInfo(message.checkpoint, message.position)


def encode_restore_request(snapshot: bytes, request: RestoreRequest) -> sessions_pb2.RestoreRequest:
    return sessions_pb2.RestoreRequest(
        snapshot=snapshot,
        id=request.id or "",
        durable=request.durable,
        ttl_seconds=request.ttl_seconds or 0,
        idle_seconds=request.idle_seconds or 0,
        drift=request.drift,
    )


def decode_restore_request(message: sessions_pb2.RestoreRequest) -> tuple[bytes, RestoreRequest]:
    """The inverse of `encode_restore_request`: empty and 0 mean not given."""
    return message.snapshot, RestoreRequest(
        id=message.id or None,
        durable=message.durable,
        ttl_seconds=message.ttl_seconds or None,
        idle_seconds=message.idle_seconds or None,
        drift=message.drift if message.HasField("drift") else None,
    )


def _encode_time(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(round(seconds * 1e6))
    return timestamp


def _decode_time(timestamp: Timestamp) -> float:
    return timestamp.ToMicroseconds() / 1e6
