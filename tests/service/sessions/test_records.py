"""What is stored of a session: the inverse pairs, one check over all of it, and every field within its bounds."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.api import LAST_POSITION, LATEST, Candidate, Prediction, SessionKey, SessionRequest, StepResult, Surprise
from tidegate.config import LONGEST_LIFE
from tidegate.drift import ChartState
from tidegate.engine.lifecycle import Phase
from tidegate.engine.request import Transcript
from tidegate.engine.session import LastReply
from tidegate.errors import FailedPreconditionError, InternalError
from tidegate.sessions.expiry import ended_phase
from tidegate.sessions.records import (
    Record,
    StoredChart,
    Summary,
    decode_chart,
    decode_checkpoint,
    decode_record,
    decode_summary,
    encode_checkpoint,
    encode_head,
    encode_record,
    encode_step,
    last_reply,
    new_record,
    request_of,
)
from tidegate.sessions.stores.store import FORMAT, Entry
from tidegate.v1.records_pb2 import RetainedCheckpoint, SessionChart, SessionSource

KEY = SessionKey("tenant", "s")
REVISION = b"r" * 16
USUAL = StepResult("s", 7, Prediction(1, next=[[Candidate("e", 43, 0.5)]], surprise=Surprise(1.5, "bits/token")))


def made(key: SessionKey = KEY) -> Record:
    """A record with something in every field."""
    request = SessionRequest("tiny", "1", durable=True, id=key.id, seed=7, drift=True, origin="oip")
    record = new_record(key, request, created_at=1e9, seed=7, ttl=100.0, idle=10.0)
    summary, body = record
    summary.model, summary.version, summary.model_sha256, summary.state_bytes = "tiny", "1", "a" * 64, 64
    summary.position, summary.labels["city"] = 6, "Paris"
    summary.chart.block_sum, summary.chart.blocks, summary.chart.ewma, summary.chart.state = 1.5, 3, 6.0, "normal"
    summary.checkpoints.add(name="here", position=3)
    summary.source.cluster, summary.source.topic_id = "cluster", "topic"
    summary.source.partition, summary.source.next_offset = 3, 17
    body.state, body.layout, body.forked_from = bytes(range(64)), b"l" * 32, "fork of t"
    body.last.start, body.last.fingerprint = 5, b"f" * 32
    body.last.generated.tokens.extend([1, 2])
    return record


def stored(record: Record | None = None, revision: bytes = REVISION) -> Entry:
    return Entry(revision, *encode_record(record or made(), revision))


def assert_damaged(read: Callable[[], object], words: str = "is damaged") -> None:
    with pytest.raises(InternalError, match=words) as caught:
        read()
    assert caught.value.reason == "STORE_CORRUPT"
    assert len(caught.value.message) < 300


def test_a_record_is_read_as_it_was_written() -> None:
    record = made()
    found = decode_record(KEY, stored(record))
    assert found == record
    assert decode_summary(KEY, stored(record)) == record.summary
    assert request_of(found) == SessionRequest("tiny", "1", durable=True, id="s", seed=7, drift=True, origin="oip")
    assert found.summary.body_bytes == len(stored(record).body)


@given(
    st.integers(0, LAST_POSITION),
    st.floats(0, 1e10),
    st.binary(max_size=300),
    st.sampled_from([LastReply(6, b"g" * 32, USUAL), LastReply(6, b"g" * 32, Transcript())]),
    st.sampled_from([None, StoredChart(math.nan, None), StoredChart(2.5, ChartState(5.0, 4, "drift"))]),
    st.sampled_from([None, Phase.CLOSED]),
)
def test_a_step_changes_what_it_says_and_nothing_else(
    position: int, used_at: float, state: bytes, last: LastReply, chart: StoredChart | None, ended: Phase | None
) -> None:
    record = made()
    record.summary.ended, record.summary.ended_at = Phase.IDLE.value, 5.0
    entry = Entry(REVISION, *encode_step(encode_head(record), REVISION, position, used_at, state, last, chart, ended))
    summary, body = decode_record(KEY, entry)
    assert (summary.position, summary.used_at, body.state) == (position, used_at, state)
    found = last_reply(Record(summary, body))
    assert found is not None
    assert found[:2] == last[:2]
    assert str(decode_chart(summary)) == str(chart)
    assert (summary.ended, summary.ended_at) == ((ended.value, used_at) if ended else ("", 0.0))
    for field in ("position", "used_at", "body_bytes", "body_checksum", "chart", "ended", "ended_at"):
        summary.ClearField(field)
        record.summary.ClearField(field)
    for field in ("state", "last"):
        body.ClearField(field)  # type: ignore[arg-type]
        record.body.ClearField(field)  # type: ignore[arg-type]
    assert (summary, body) == record


def test_a_step_beyond_the_last_position_is_not_encoded() -> None:
    last = LastReply(6, b"g" * 32, USUAL)
    with pytest.raises(struct.error):
        encode_step(encode_head(made()), REVISION, LAST_POSITION + 1, 1e9, b"", last)


def test_a_session_that_ends_with_a_step_keeps_its_last_reply() -> None:
    last = LastReply(6, b"g" * 32, USUAL)
    step = encode_step(encode_head(made()), REVISION, 7, 1e9, b"state", last, ended=Phase.CLOSED)
    summary, body = decode_record(KEY, Entry(REVISION, *step))
    assert ended_phase(summary, 0.0) is Phase.CLOSED
    assert last_reply(Record(summary, body)) == last


def test_a_checkpoint_is_read_under_its_own_name_only() -> None:
    content = encode_checkpoint(KEY, "here", made())
    found = decode_checkpoint(KEY, "here", content)
    assert (found.position, found.state, found.version, found.format) == (6, bytes(range(64)), "1", FORMAT)
    assert_damaged(lambda: decode_checkpoint(KEY, "there", content), "its checksum is wrong")
    assert_damaged(lambda: decode_checkpoint(SessionKey("tenant", "t"), "here", content))
    assert_damaged(lambda: decode_checkpoint(KEY, "here", content[:-1]))
    assert_damaged(lambda: decode_checkpoint(KEY, "here", b""), "its seal is missing")


@given(
    part=st.sampled_from(["revision", "summary", "body"]), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7)
)
def test_a_flipped_bit_anywhere_is_noticed(part: str, at: float, bit: int) -> None:
    entry = stored()
    content = bytearray(getattr(entry, part))
    content[int(at * len(content))] ^= 1 << bit
    damaged = entry._replace(**{part: bytes(content)})
    assert_damaged(lambda: decode_record(KEY, damaged))
    if part != "body":
        assert_damaged(lambda: decode_summary(KEY, damaged))


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_bytes_that_nobody_wrote_are_no_record(summary: bytes, body: bytes) -> None:
    for entry in (Entry(REVISION, summary, body), stored()._replace(summary=summary), stored()._replace(body=body)):
        assert_damaged(lambda entry=entry: decode_record(KEY, entry))  # type: ignore[misc]


def test_parts_of_different_records_are_no_record() -> None:
    """Each whole, but not of this key, or not of one write."""
    mine, theirs, later = stored(), stored(made(SessionKey("tenant", "t"))), stored(made(), b"s" * 16)
    assert_damaged(lambda: decode_summary(KEY, theirs), "its checksum is wrong")
    assert_damaged(lambda: decode_summary(SessionKey("other", "s"), mine))
    assert_damaged(lambda: decode_summary(KEY, mine._replace(revision=later.revision)))
    record = made()
    record.body.state = bytes(64)
    assert_damaged(lambda: decode_record(KEY, mine._replace(body=stored(record).body)), "its body's checksum is wrong")


def sealed(summary: Summary, body: bytes | None = None) -> Entry:
    """What somebody writes who knows the checksums, and bounds nothing."""
    if body is not None:
        summary.body_bytes, summary.body_checksum = len(body), crc32(body)
    content = summary.SerializeToString()
    checksum = crc32(REVISION, crc32(content, crc32(b"tenant\0s\0")))
    return Entry(REVISION, struct.pack("<BI", 1, checksum) + content, body or b"")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("position", LAST_POSITION + 1, "its position is beyond all positions"),
        ("used_at", math.nan, "its used_at is no time"),
        ("used_at", math.inf, "its used_at is no time"),
        ("created_at", -1.0, "its created_at is no time"),
        ("created_at", LATEST, "its created_at is no time"),
        ("ended_at", 1e300, "its ended_at is no time"),
        ("ttl_seconds", math.nan, "its time to live is none"),
        ("ttl_seconds", 2 * LONGEST_LIFE, "its time to live is none"),
        ("idle_seconds", 0.0, "its idle time is none"),
        ("id", "t", "it is another session's"),
        ("tenant", "other", "it is another session's"),
        ("origin", "x" * 4000, "its origin is too long"),
        ("model", "x" * 129, "its model is too long"),
        ("version", "1" * 17, "its version is too long"),
        ("model_sha256", "a" * 65, "its model_sha256 is too long"),
        ("ended", "SESSION_LOST", "its ending has no such reason"),
        ("ended", "OPEN", "its ending has no such reason"),
    ],
)
def test_a_field_out_of_bounds_is_damage_whatever_the_checksum_says(field: str, value: Any, words: str) -> None:
    summary = made().summary
    setattr(summary, field, value)
    assert_damaged(lambda: decode_summary(KEY, sealed(summary)), words)
    if field not in {"id", "tenant"}:  # nor is it ever written
        assert_damaged(lambda: encode_record(Record(summary, made().body), REVISION), words)


LONG = "x" * 257


@pytest.mark.parametrize(
    "part",
    [
        Summary(checkpoints=[RetainedCheckpoint(name=f"c{number}") for number in range(8)]),
        Summary(checkpoints=[RetainedCheckpoint(name=LONG)]),
        Summary(checkpoints=[RetainedCheckpoint(name="c", position=2**64 - 1)]),
        Summary(labels={f"l{number}": "x" for number in range(64)}),
        Summary(labels={"city": LONG}),
        Summary(labels={LONG: "x"}),
        Summary(source=SessionSource(cluster=LONG)),
        Summary(source=SessionSource(topic_id=LONG)),
        Summary(source=SessionSource(next_offset=2**64 - 1)),
        Summary(chart=SessionChart(ewma=math.inf)),
        Summary(chart=SessionChart(state="bad")),
        Summary(chart=SessionChart(blocks=2**64 - 1)),
    ],
    ids=[
        "number of checkpoints",
        "name of a checkpoint",
        "position of a checkpoint",
        "number of labels",
        "value of a label",
        "name of a label",
        "cluster",
        "topic",
        "offset",
        "moving average",
        "state of the chart",
        "blocks",
    ],
)
def test_a_part_out_of_bounds_is_damage_whatever_the_checksum_says(part: Summary) -> None:
    """Each beside what a sound summary holds."""
    summary = made().summary
    summary.MergeFrom(part)
    assert_damaged(lambda: decode_summary(KEY, sealed(summary)))
    assert_damaged(lambda: encode_record(Record(summary, made().body), REVISION))


@pytest.mark.parametrize(
    ("field", "value"),
    [("layout", b"short"), ("forked_from", "a" * 4_000_000), ("start", 2**64 - 1), ("fingerprint", bytes(33))],
)
def test_a_field_of_the_body_out_of_bounds_is_damage(field: str, value: Any) -> None:
    summary, body = made()
    setattr(body.last if field in {"start", "fingerprint"} else body, field, value)
    assert_damaged(lambda: decode_record(KEY, sealed(summary, body.SerializeToString())))


def test_a_summary_that_is_too_long_is_not_even_read() -> None:
    summary = made().summary
    summary.MergeFromString(b"\xfa\x7f" + b"\xa0\x8d\x06" + bytes(100_000))  # a field that nobody knows
    assert_damaged(lambda: decode_summary(KEY, sealed(summary)), "its summary is too long")


def test_a_record_of_a_newer_format_is_told_as_such() -> None:
    summary = made().summary
    summary.format = FORMAT + 1
    with pytest.raises(FailedPreconditionError) as caught:
        decode_summary(KEY, sealed(summary))
    assert caught.value.reason == "NEWER_FORMAT"
