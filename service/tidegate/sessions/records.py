"""A durable session ↔ its record: what is stored, and how long it lives. Pure; knows nothing of stores.

A record is one protobuf message (`proto/tidegate/v1/records.proto`) written as two parts, which protobuf reads as one:
the *head*, which steps do not change and which a live session keeps encoded, and what a step changes.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from google.protobuf.message import DecodeError

from tidegate.core import SessionInfo, SessionRequest, StepResult
from tidegate.engine.work import Transcript
from tidegate.errors import FailedPreconditionError, InternalError
from tidegate.observe.drift import Charted, state_of
from tidegate.protobuf import varint
from tidegate.sessions.lifecycle import Event, Phase
from tidegate.sessions.session import LastReply
from tidegate.sessions.sheet import Sheet
from tidegate.sessions.stores.store import FORMAT, Due, Entry, Write
from tidegate.v1 import records_pb2
from tidegate.wire.predictions import decode_step, fill_step
from tidegate.wire.sessions import decode_session_request, encode_session_request

Record = records_pb2.SessionRecord

_REVISION_BYTES = 16
_sheet = Sheet()


class KeptChart(NamedTuple):
    """What a durable session that has a chart of its own keeps of it: the unfinished block's sum, and the chart."""

    block_sum: float
    chart: Charted | None


REMEMBERED_SECONDS = 3600.0
"""How long an ending and its reason are remembered."""


def new_revision() -> bytes:
    return secrets.token_bytes(_REVISION_BYTES)


def new_revisions(count: int) -> list[bytes]:
    """Return so many new revisions, for one call of the system."""
    random = secrets.token_bytes(count * _REVISION_BYTES)
    return [random[start : start + _REVISION_BYTES] for start in range(0, len(random), _REVISION_BYTES)]


def new_record(
    id_: str, request: SessionRequest, *, created_at: float, seed: int, ttl: float | None, idle: float | None
) -> Record:
    """Return the record of a session at position 0; its model is to be set by `place`."""
    return Record(
        format=FORMAT,
        id=id_,
        created_at=created_at,
        used_at=created_at,
        ttl_seconds=ttl,
        idle_seconds=idle,
        seed=seed,
        origin=request.origin,
        request=encode_session_request(request),
    )


def decode_record(entry: Entry) -> Record:
    """Return the record of an entry.

    Raises:
        FailedPreconditionError: A newer tidegate wrote it.
        InternalError: It is not a record.
    """
    try:
        record = Record.FromString(entry.record)
    except DecodeError as error:
        raise InternalError("a stored session cannot be read: the store is damaged", reason="STORE_CORRUPT") from error
    if record.format != FORMAT:
        raise FailedPreconditionError(
            f"the session is stored in format {record.format}, this server reads {FORMAT}", reason="NEWER_FORMAT"
        )
    return record


def encode_head(record: Record) -> bytes:
    """Return the part of a record that steps do not change."""
    head = Record()
    head.CopyFrom(record)
    for field in ("position", "used_at", "state", "last", "chart"):
        head.ClearField(field)
    return head.SerializeToString()


def encode_step(
    head: bytes, position: int, used_at: float, state: bytes, last: LastReply, chart: KeptChart | None = None
) -> bytes:
    """Return the record of a session after a step; ``chart`` is its own, where it has one."""
    moving = _sheet.encode(position, used_at, last) if chart is None else None
    if moving is None:
        moving = _encode_moving(position, used_at, last, chart)
    # The state, by far the longest field, is put behind the others as protobuf would write it: one copy, not three.
    return b"".join((head, moving, _state_prefix(len(state)), state))


def _encode_moving(position: int, used_at: float, last: LastReply, chart: KeptChart | None) -> bytes:
    moving = Record(position=position, used_at=used_at)
    if chart is not None:
        _fill_chart(moving.chart, chart)
    _fill_last(moving.last, last)
    return moving.SerializeToString()


@functools.cache
def _state_prefix(size: int) -> bytes:
    """Return what protobuf writes before a `state` of that size: the field's tag and the length, as varints."""
    tag = Record(state=b"x").SerializeToString()[:-2]
    return tag + varint(size) if size else b""


def _fill_chart(message: records_pb2.SessionChart, kept: KeptChart) -> None:
    message.block_sum, chart = kept
    if chart is not None:
        message.ewma, message.blocks, message.state = chart


def kept_chart(record: Record) -> KeptChart | None:
    """Return where the session's own chart is; None where it has none."""
    if not record.HasField("chart"):
        return None
    message = record.chart
    chart = Charted(message.ewma, message.blocks, state_of(message.state)) if message.blocks else None
    return KeptChart(message.block_sum, chart)


def _fill_last(message: records_pb2.LastReply, last: LastReply) -> None:
    start, fingerprint, result = last
    assert isinstance(fingerprint, bytes)
    message.start, message.fingerprint = start, fingerprint
    if isinstance(result, StepResult):
        fill_step(message.step, result)
        message.every_step = result.prediction.every_step
    else:
        message.generated.tokens.extend(result.tokens)
        message.generated.SetInParent()


def last_reply(record: Record) -> LastReply | None:
    """Return the chunk that the session remembers, or None."""
    if not record.HasField("last"):
        return None
    message = record.last
    if message.HasField("step"):
        result: StepResult | Transcript = decode_step(message.step, every_step=message.every_step)
    else:
        result = Transcript()
        result.tokens = list(message.generated.tokens)
    return LastReply(message.start, message.fingerprint, result)


def info_of(record: Record, state_bytes: int) -> SessionInfo:
    """Return what callers may know."""
    kept = kept_chart(record)
    return SessionInfo(
        id=record.id,
        model=record.model,
        version=record.version,
        position=record.position,
        durable=True,
        created_at=record.created_at,
        expires_at=end_of(record),
        state_bytes=state_bytes,
        checkpoints=tuple(kept.name for kept in record.checkpoints),
        origin=record.origin,
        drift=None if kept is None or kept.chart is None else kept.chart.told(),
    )


def request_of(record: Record) -> SessionRequest:
    return replace(decode_session_request(record.request), origin=record.origin)


# ---- life and end


def end_of(record: Record) -> float | None:
    """When the session ends if no step comes, in seconds since the epoch; None for never."""
    return min((at for at, _ in _ends(record)), default=None)


def overdue(record: Record, now: float) -> Event | None:
    """Return why the session should have ended by ``now``, or None."""
    return next((event for at, event in _ends(record) if at <= now), None)


def _ends(record: Record) -> Iterable[tuple[float, Event]]:
    if record.HasField("ttl_seconds"):
        yield record.created_at + record.ttl_seconds, Event.OUTLIVE
    if record.HasField("idle_seconds"):
        yield record.used_at + record.idle_seconds, Event.IDLE


def phase_of(record: Record) -> Phase:
    return Phase(record.ended) if record.ended else Phase.OPEN


def ending(record: Record, expected: bytes, phase: Phase, now: float) -> Write:
    """Return the write that ends a session: what is left remembers who it was and why it ended."""
    left = Record(
        format=FORMAT, id=record.id, model=record.model, version=record.version, ended=phase.value, ended_at=now
    )
    gone: dict[str, bytes | None] = {kept.name: None for kept in record.checkpoints}
    due = Due(now + REMEMBERED_SECONDS)
    return Write(
        record.id, expected, new_revision(), left.SerializeToString(), due=due, is_listed=False, attachments=gone
    )
