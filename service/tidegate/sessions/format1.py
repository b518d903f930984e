"""Records of format 1 → records as they are stored now. Pure; for the migration of a store only.

Format 1 kept one message a session, and what ended kept nothing but who it was.
"""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.message import DecodeError

from tidegate.errors import InternalError
from tidegate.sessions.ids import key_of
from tidegate.sessions.records import Body, Checkpoint, Record, Summary, encode_record, seal_checkpoint
from tidegate.sessions.stores.store import FORMAT
from tidegate.v1 import records_pb2

OLD_FORMAT = 1


class Migrated(NamedTuple):
    """What is stored from now on. Of a damaged record it is what was there, which no check passes."""

    summary: bytes
    body: bytes
    is_damaged: bool


def migrate_record(id_: str, revision: bytes, content: bytes) -> Migrated:
    """Return a session's record as it is stored now, at the same revision."""
    try:
        old = records_pb2.SessionRecordFormat1.FromString(content)
        if old.format != OLD_FORMAT or old.id != id_:
            return damaged(content)
        record = Record(_summary(old), _body(old))
        summary, body = encode_record(record, revision)
    except (DecodeError, InternalError):
        return damaged(content)
    return Migrated(summary, body, is_damaged=False)


def damaged(content: bytes) -> Migrated:
    """Return what becomes of a record that its own checksum, or a look at it, has shown to be damaged."""
    return Migrated(b"", content, is_damaged=True)


def migrate_checkpoint(id_: str, name: str, content: bytes) -> bytes:
    """Return a checkpoint as it is stored now; a damaged one as it is, which no check passes."""
    try:
        checkpoint = Checkpoint.FromString(content)
    except DecodeError:
        return content
    checkpoint.format = FORMAT
    return seal_checkpoint(key_of(id_), name, checkpoint)


def _summary(old: records_pb2.SessionRecordFormat1) -> Summary:
    key = key_of(old.id)
    summary = Summary(
        format=FORMAT,
        id=key.id,
        tenant=key.tenant,
        position=old.position,
        created_at=old.created_at,
        used_at=old.used_at,
        ttl_seconds=old.ttl_seconds if old.HasField("ttl_seconds") else None,
        idle_seconds=old.idle_seconds if old.HasField("idle_seconds") else None,
        origin=old.origin,
        model=old.model,
        version=old.version,
        model_sha256=old.model_sha256,
        state_bytes=len(old.state),
        checkpoints=old.checkpoints,
        ended=old.ended,
        ended_at=old.ended_at,
    )
    if old.HasField("chart"):
        summary.chart.CopyFrom(old.chart)
    return summary


def _body(old: records_pb2.SessionRecordFormat1) -> Body:
    if old.ended:
        return Body()  # it is stored as no bytes at all
    body = Body(request=old.request, forked_from=old.forked_from, seed=old.seed, layout=old.layout, state=old.state)
    if old.HasField("last"):
        body.last.CopyFrom(old.last)
        if body.last.HasField("step"):
            body.last.step.ClearField("session")
            body.last.step.ClearField("position")
    return body
