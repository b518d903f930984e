"""A durable session ↔ what is stored of it. Pure; knows nothing of stores, and of no clock.

A record is two protobuf messages (`proto/tidegate/v1/records.proto`). The *summary* holds all that lists, expiry and
erasure need, and the size and checksum of the *body*, which holds the state and the last reply. The summary is stored
behind a *seal*: a checksum over the session's key, the summary and the revision. So one check covers the whole record,
and a summary is checked without its body. Checkpoints are sealed likewise, under their name.

All checksums are CRC-32. It finds every burst of up to 32 bits and all but one in 2^32 of other damage. Body and seal
of 4.5 KB take 1.5 µs, where SHA-256 takes 4 µs of a step's 59 (one in a column); SHA-256 is no help either against
somebody who computes it anew, for it has no key. The seal begins with its kind, for a later one that has.

Every field is checked where it is decoded, whatever the seal says.
"""

from __future__ import annotations

import functools
import math
import secrets
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar
from zlib import crc32

from google.protobuf.message import DecodeError

from tidegate.api import LAST_POSITION, LATEST, SessionInfo, SessionKey, SessionRequest, StepResult
from tidegate.config import LONGEST_LIFE
from tidegate.drift import ChartState, state_of
from tidegate.engine.lifecycle import Phase
from tidegate.engine.request import Transcript
from tidegate.engine.session import Head, LastReply
from tidegate.errors import FailedPreconditionError, InternalError
from tidegate.limits import (
    MAX_CHECKPOINTS,
    MAX_NAME_LENGTH,
    MAX_SESSION_LABEL_LENGTH,
    MAX_SESSION_LABELS,
    MAX_SUMMARY_BYTES,
)
from tidegate.protobuf import varint
from tidegate.sessions.fast_last_reply import FastLastReply
from tidegate.sessions.stores.store import FORMAT, Entry, Stored
from tidegate.v1 import records_pb2
from tidegate.wire.predictions import decode_step, fill_step
from tidegate.wire.sessions import decode_session_request, encode_session_request

Summary = records_pb2.SessionSummary
Body = records_pb2.SessionBody
Checkpoint = records_pb2.CheckpointRecord

_REVISION_BYTES = 16
_LATEST = LATEST - LONGEST_LIFE
"""Whatever begins before has an end that can be told."""
_SHA256_BYTES = 32
_MOST_OFFSET = 2**63 - 1
_MOST_SOURCE_BYTES = 512

_SEAL = struct.Struct("<BI")
_CRC32 = 1

# What a step changes of a summary, as protobuf would write it: each field behind its tag, all of fixed width.
_MOVING = struct.Struct("<BqBdBIBI")
_POSITION, _USED_AT, _BODY_BYTES, _BODY_CHECKSUM = 2 << 3 | 1, 3 << 3 | 1, 4 << 3 | 5, 5 << 3 | 5

_LONGEST = (
    ("origin", 32),
    ("model", MAX_NAME_LENGTH),
    ("version", 16),
    ("model_sha256", 2 * _SHA256_BYTES),
)
"""The characters that a summary's texts may have; those of the key are as long as the key's."""

_fast_last_reply = FastLastReply()
Message = TypeVar("Message", Summary, Body, Checkpoint)


class Record(NamedTuple):
    """A session as it is stored: two messages, changed in place."""

    summary: Summary
    body: Body


class StoredChart(NamedTuple):
    """What a durable session that has a chart of its own keeps of it: the unfinished block's sum, and the chart."""

    block_sum: float
    chart: ChartState | None


def new_revision() -> bytes:
    return secrets.token_bytes(_REVISION_BYTES)


def new_revisions(count: int) -> list[bytes]:
    """Return so many new revisions, for one call of the system."""
    random = secrets.token_bytes(count * _REVISION_BYTES)
    return [random[start : start + _REVISION_BYTES] for start in range(0, len(random), _REVISION_BYTES)]


def new_record(
    key: SessionKey, request: SessionRequest, *, created_at: float, seed: int, ttl: float | None, idle: float | None
) -> Record:
    """Return the record of a session at position 0; its model is still to be set."""
    summary = Summary(
        format=FORMAT,
        id=key.id,
        tenant=key.tenant,
        created_at=created_at,
        used_at=created_at,
        ttl_seconds=ttl,
        idle_seconds=idle,
        origin=request.origin,
    )
    return Record(summary, Body(request=encode_session_request(request), seed=seed))


def key_of(summary: Summary) -> SessionKey:
    return SessionKey(summary.tenant, summary.id)


# ---- encoding


def encode_record(record: Record, revision: bytes) -> tuple[bytes, bytes]:
    """Return the summary and the body as they are stored at ``revision``; the summary gets the body's checksum.

    Raises:
        InternalError: No reader would take it.
    """
    body = encode_body(record.summary, record.body)
    key = key_of(record.summary)
    _check(key, lambda: _check_summary(record.summary, key))
    return encode_summary(record.summary, revision), body


def encode_body(summary: Summary, body: Body) -> bytes:
    """Return the body as it is stored; the summary gets its checksum."""
    content = body.SerializeToString()
    summary.body_bytes, summary.body_checksum = len(content), crc32(content)
    return content


def encode_summary(summary: Summary, revision: bytes) -> bytes:
    """Return a summary as it is stored at ``revision``."""
    return _seal(key_of(summary), revision, summary.SerializeToString())


def encode_head(record: Record) -> Head:
    """Return the parts of a record that steps do not change; an ending goes with the next step."""
    summary, body = Summary(), Body()
    summary.CopyFrom(record.summary)
    body.CopyFrom(record.body)
    for field in ("position", "used_at", "body_bytes", "body_checksum", "chart", "ended", "ended_at"):
        summary.ClearField(field)
    body.ClearField("last")
    body.ClearField("state")
    return make_head(summary, body.SerializeToString())


def make_head(summary: Summary, body: bytes) -> Head:
    """Return the parts that steps do not change, out of their fields."""
    content = summary.SerializeToString()
    return Head(crc32(content, _checksum_of(key_of(summary))), content, body)


def encode_step(
    head: Head,
    revision: bytes,
    position: int,
    used_at: float,
    state: bytes,
    last: LastReply,
    chart: StoredChart | None = None,
    ended: Phase | None = None,
) -> tuple[bytes, bytes]:
    """Return the summary and the body of a session after a step, as they are stored at ``revision``.

    Args:
        head: Of the record that the step was taken on.
        revision: The new one.
        position: After the step.
        used_at: When it was taken, by the store's clock.
        state: After the step.
        last: What is remembered for a repeat.
        chart: The session's own, where it has one.
        ended: Why the session ends with this step, if it does; the last reply stays for a repeat.

    Raises:
        struct.error: The position is beyond `LAST_POSITION`.
    """
    # The state, by far the longest field, is put behind the others as protobuf would write it: one copy, not three.
    body = b"".join((head.body, _fast_last_reply.encode(last) or _encode_last(last), _state_prefix(len(state)), state))
    moving = _MOVING.pack(_POSITION, position, _USED_AT, used_at, _BODY_BYTES, len(body), _BODY_CHECKSUM, crc32(body))
    if chart is not None or ended is not None:
        moving += _encode_rest(chart, ended, used_at)
    # As `_seal`, but for what is the same at each step.
    seal = _SEAL.pack(_CRC32, crc32(revision, crc32(moving, head.checksum)))
    return b"".join((seal, head.summary, moving)), body


def encode_checkpoint(key: SessionKey, name: str, record: Record) -> bytes:
    """Return what a checkpoint retains of a session, as it is stored."""
    summary = record.summary
    checkpoint = Checkpoint(
        format=FORMAT,
        version=summary.version,
        model_sha256=summary.model_sha256,
        position=summary.position,
        state=record.body.state,
    )
    return seal_checkpoint(key, name, checkpoint)


def seal_checkpoint(key: SessionKey, name: str, checkpoint: Checkpoint) -> bytes:
    return _seal(key, name.encode(), checkpoint.SerializeToString())


def _encode_rest(chart: StoredChart | None, ended: Phase | None, used_at: float) -> bytes:
    rest = Summary()
    if chart is not None:
        _fill_chart(rest.chart, chart)
    if ended is not None:
        rest.ended, rest.ended_at = ended.value, used_at
    return rest.SerializeToString()


def _encode_last(last: LastReply) -> bytes:
    body = Body()
    _fill_last(body.last, last)
    return body.SerializeToString()


@functools.cache
def _state_prefix(size: int) -> bytes:
    """Return what protobuf writes before a `state` of that size: the field's tag and the length, as varints."""
    tag = Body(state=b"x").SerializeToString()[:-2]
    return tag + varint(size) if size else b""


def _fill_chart(message: records_pb2.SessionChart, kept: StoredChart) -> None:
    message.block_sum, chart = kept
    if chart is not None:
        message.ewma, message.blocks, message.state = chart


def _fill_last(message: records_pb2.LastReply, last: LastReply) -> None:
    start, fingerprint, result = last
    assert isinstance(fingerprint, bytes)
    message.start, message.fingerprint = start, fingerprint
    if isinstance(result, StepResult):
        fill_step(message.step, result)
        message.step.ClearField("session")  # which session and where it is stands in the summary
        message.step.ClearField("position")
        message.every_step = result.prediction.every_step
    else:
        message.generated.tokens.extend(result.tokens)
        message.generated.SetInParent()


def _checksum_of(key: SessionKey) -> int:
    return crc32(f"{key.tenant}\0{key.id}\0".encode())


def _seal(key: SessionKey, revision: bytes, content: bytes) -> bytes:
    return _SEAL.pack(_CRC32, crc32(revision, crc32(content, _checksum_of(key)))) + content


# ---- decoding


def decode_summary(key: SessionKey, stored: Stored | Entry) -> Summary:
    """Return the summary of what is stored under a key.

    Raises:
        FailedPreconditionError: ``NEWER_FORMAT``: a newer tidegate wrote it.
        InternalError: ``STORE_CORRUPT``: it is damaged.
    """
    return _check(key, lambda: _decode_summary(key, stored.revision, stored.summary))


def decode_record(key: SessionKey, entry: Entry) -> Record:
    """Return the record of what is stored under a key.

    Raises:
        FailedPreconditionError, InternalError: As of `decode_summary`.
    """
    return _check(key, lambda: _decode_record(key, entry))


def decode_checkpoint(key: SessionKey, name: str, content: bytes) -> Checkpoint:
    """Return what a checkpoint retains.

    Raises:
        InternalError: ``STORE_CORRUPT``: it is damaged.
    """
    return _check(key, lambda: _decode_checkpoint(key, name, content))


def decode_chart(summary: Summary) -> StoredChart | None:
    """Return where the session's own chart is; None where it has none."""
    if not summary.HasField("chart"):
        return None
    message = summary.chart
    chart = ChartState(message.ewma, message.blocks, state_of(message.state)) if message.blocks else None
    return StoredChart(message.block_sum, chart)


def last_reply(record: Record) -> LastReply | None:
    """Return the chunk that the session remembers, or None."""
    if not record.body.HasField("last"):
        return None
    message = record.body.last
    result: StepResult | Transcript
    if message.HasField("step"):
        step = decode_step(message.step, every_step=message.every_step)
        result = step._replace(session=record.summary.id, position=record.summary.position)
    else:
        result = Transcript()
        result.tokens = list(message.generated.tokens)
    return LastReply(message.start, message.fingerprint, result)


def info_of(summary: Summary, state_bytes: int, expires_at: float | None) -> SessionInfo:
    """Return what callers may know."""
    kept = decode_chart(summary)
    return SessionInfo(
        id=summary.id,
        model=summary.model,
        version=summary.version,
        position=summary.position,
        durable=True,
        created_at=summary.created_at,
        expires_at=expires_at,
        state_bytes=state_bytes,
        checkpoints=tuple(kept.name for kept in summary.checkpoints),
        origin=summary.origin,
        drift=None if kept is None or kept.chart is None else kept.chart.to_drift(),
    )


def request_of(record: Record) -> SessionRequest:
    return replace(decode_session_request(record.body.request), origin=record.summary.origin)


class _DamagedError(ValueError):
    """What is wrong with a record, in words for the log."""


Decoded = TypeVar("Decoded")


def _check(key: SessionKey, decode: Callable[[], Decoded]) -> Decoded:
    try:
        return decode()
    except (_DamagedError, DecodeError) as error:
        message = f"what is stored of session {key.id} is damaged"
        raise InternalError(message, reason="STORE_CORRUPT", cause=str(error)) from error


def _decode_summary(key: SessionKey, revision: bytes, sealed: bytes) -> Summary:
    _require(len(sealed) <= MAX_SUMMARY_BYTES, "its summary is too long")
    summary = Summary.FromString(_unseal(key, revision, sealed))
    if summary.format > FORMAT:
        raise FailedPreconditionError(
            f"session {key.id} is stored in format {summary.format}, this server reads {FORMAT}", reason="NEWER_FORMAT"
        )
    _check_summary(summary, key)
    return summary


def _decode_record(key: SessionKey, entry: Entry) -> Record:
    summary = _decode_summary(key, entry.revision, entry.summary)
    is_whole = len(entry.body) == summary.body_bytes and crc32(entry.body) == summary.body_checksum
    _require(is_whole, "its body's checksum is wrong")
    body = Body.FromString(entry.body)
    _require(len(body.layout) in {0, _SHA256_BYTES}, "its layout is no SHA-256")
    _require(len(body.forked_from.encode()) <= _MOST_SOURCE_BYTES, "what it was forked from is too long")
    _require(body.last.start <= LAST_POSITION, "its last chunk begins beyond all positions")
    _require(len(body.last.fingerprint) <= _SHA256_BYTES, "its last chunk's fingerprint is too long")
    return Record(summary, body)


def _decode_checkpoint(key: SessionKey, name: str, sealed: bytes) -> Checkpoint:
    checkpoint = Checkpoint.FromString(_unseal(key, name.encode(), sealed))
    _require(checkpoint.position <= LAST_POSITION, "its checkpoint lies beyond all positions")
    return checkpoint


def _unseal(key: SessionKey, revision: bytes, sealed: bytes) -> bytes:
    _require(len(sealed) >= _SEAL.size, "its seal is missing")
    kind, checksum = _SEAL.unpack_from(sealed)
    content = sealed[_SEAL.size :]
    _require((kind, checksum) == (_CRC32, crc32(revision, crc32(content, _checksum_of(key)))), "its checksum is wrong")
    return content


def _check_summary(summary: Summary, key: SessionKey) -> None:
    """Raise _DamagedError unless every field is within its bounds."""
    _require((summary.tenant, summary.id) == key, "it is another session's")
    _require(summary.position <= LAST_POSITION, "its position is beyond all positions")
    for name, most in _LONGEST:
        if len(getattr(summary, name)) > most:
            raise _DamagedError(f"its {name} is too long")
    _check_times(summary)
    _require(not summary.ended or summary.ended in _ENDINGS, "its ending has no such reason")
    _require(len(summary.checkpoints) <= MAX_CHECKPOINTS, "it has too many checkpoints")
    for kept in summary.checkpoints:
        is_sound = len(kept.name) <= MAX_NAME_LENGTH and kept.position <= LAST_POSITION
        _require(is_sound, "a checkpoint of it is damaged")
    _require(len(summary.labels) <= MAX_SESSION_LABELS, "it has too many labels")
    for name, value in summary.labels.items():
        _require(max(len(name), len(value)) <= MAX_SESSION_LABEL_LENGTH, "a label of it is too long")
    if summary.HasField("chart"):
        _check_chart(summary.chart)
    if summary.HasField("source"):
        source = summary.source
        _require(max(len(source.cluster), len(source.topic_id)) <= MAX_NAME_LENGTH, "its source's name is too long")
        _require(source.next_offset <= _MOST_OFFSET, "its source's offset is beyond all offsets")


def _check_times(summary: Summary) -> None:
    for name in ("created_at", "used_at", "ended_at"):
        if not 0 <= getattr(summary, name) <= _LATEST:
            raise _DamagedError(f"its {name} is no time")
    if summary.HasField("ttl_seconds"):
        _require(0 < summary.ttl_seconds <= LONGEST_LIFE, "its time to live is none")
    if summary.HasField("idle_seconds"):
        _require(0 < summary.idle_seconds <= LONGEST_LIFE, "its idle time is none")


def _check_chart(chart: records_pb2.SessionChart) -> None:
    if chart.blocks:
        _require(math.isfinite(chart.ewma) and chart.blocks <= LAST_POSITION, "its chart is damaged")
        try:
            state_of(chart.state)
        except ValueError:
            raise _DamagedError("its chart is in no such state") from None


_ENDINGS = frozenset(phase.value for phase in Phase if phase is not Phase.OPEN)


def _require(is_sound: bool, otherwise: str) -> None:
    if not is_sound:
        raise _DamagedError(otherwise)
