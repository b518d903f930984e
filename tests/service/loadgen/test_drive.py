"""Loops, closed and open, on a clock that only the senders and their waits move."""

from __future__ import annotations

import asyncio
from itertools import count, repeat

import pytest

from tests.service.loadgen.fake import Hanging, ManualClock, Scripted, drive, singles
from tidegate.errors import OverloadedError, TidegateError
from tidegate.loadgen.drive import PAUSE, Drive, LoadReply, SendLane
from tidegate.loadgen.load import Size
from tidegate.loadgen.record import LoadRecord


async def test_a_closed_loop_sends_when_its_last_is_answered() -> None:
    clock, record = ManualClock(), LoadRecord(1, 3)
    await drive(record, clock, [SendLane(Scripted(clock, repeat(0.25)), singles())])
    assert record.samples["1"].due.tolist() == [1 + 0.25 * each for each in range(8)]
    assert set(record.samples["1"].latencies) == {0.25}
    assert record.num_requests == 8
    assert not record.send_lags


async def test_sizes_are_sent_and_told_by_kind() -> None:
    clock, record = ManualClock(), LoadRecord(0, 1)
    sender = Scripted(clock, repeat(0.25))
    await drive(record, clock, [SendLane(sender, iter([Size("1", 1), Size("4-9", 7), Size("4-9", 5), Size("1", 1)]))])
    assert sender.lengths == [1, 7, 5, 1]
    assert {label: len(samples) for label, samples in record.samples.items()} == {"1": 2, "4-9": 2}


async def test_the_wait_behind_a_slow_reply_is_part_of_the_latency() -> None:
    """No coordinated omission: one reply of a second makes those that were due meanwhile late by what they waited."""
    clock, record = ManualClock(), LoadRecord(0, 2)
    answers = [0.01] * 5 + [1.0] + [0.01] * 20
    await drive(record, clock, [SendLane(Scripted(clock, answers), singles(), (each * 0.1 for each in count()))])
    latencies = record.samples["1"].latencies
    assert latencies[:5] == pytest.approx([0.01] * 5)
    assert latencies[5] == pytest.approx(1.0)
    assert latencies[6:15] == pytest.approx([0.91 - 0.09 * each for each in range(9)])
    assert len(latencies) == 20
    # The sender was busy, not late: what the client itself is late by is told apart.
    assert record.send_lags.latencies == pytest.approx([0.0] * 20)


async def test_what_was_due_and_never_sent_is_counted() -> None:
    clock, record = ManualClock(), LoadRecord(0, 1)
    await drive(record, clock, [SendLane(Scripted(clock, repeat(0.5)), singles(), (each / 10 for each in count()))])
    assert record.samples["1"].latencies == pytest.approx([0.5, 0.9])
    assert record.num_unsent == 8


async def test_errors_are_counted_by_reason_and_the_sender_is_reset() -> None:
    clock, record = ManualClock(), LoadRecord(0, 1)
    sender = Scripted(clock, [OverloadedError("full"), 0.4, OverloadedError("full", reason="QUEUE_FULL"), 2.0])
    await drive(record, clock, [SendLane(sender, singles())])
    assert record.errors == {"OVERLOADED": 1, "QUEUE_FULL": 1}
    assert sender.num_resets == 2
    # A closed loop pauses after an error: a dead server is not asked as fast as it refuses.
    assert record.samples["1"].due == pytest.approx([PAUSE, 2 * PAUSE + 0.4])


async def test_lanes_that_failed_in_a_message_are_errors_beside_its_steps() -> None:
    clock, record = ManualClock(), LoadRecord(0, 1)
    replies: list[float | TidegateError | LoadReply] = [LoadReply(62, ("SESSION_CLOSED", "SESSION_CLOSED")), 1.0]
    await drive(record, clock, [SendLane(Scripted(clock, replies), singles())])
    assert record.errors == {"SESSION_CLOSED": 2}
    assert record.num_steps == 62


async def test_a_request_without_reply_is_too_late() -> None:
    clock, record, sender = ManualClock(), LoadRecord(0, 1), Hanging()
    await drive(record, clock, [SendLane(sender, singles(), iter([0.5, 2]))], timeout=0.001)
    assert record.errors == {"DEADLINE_EXCEEDED": 1}
    assert sender.num_resets == 1


async def test_it_ends_after_its_requests_and_owes_none() -> None:
    clock, record = ManualClock(), LoadRecord(0, 100)
    senders = [Scripted(clock, repeat(0.1)), Scripted(clock, repeat(0.1))]
    lanes = [SendLane(senders[0], singles(), (float(each) for each in count())), SendLane(senders[1], singles())]
    await drive(record, clock, lanes, max_requests=7)
    assert sum(len(sender.lengths) for sender in senders) == 7
    assert record.seconds < 100


async def test_who_has_seen_enough_stops_it_and_what_is_in_flight_is_cut_off() -> None:
    clock, record, sender, stop = ManualClock(), LoadRecord(0, 100), Hanging(), asyncio.Event()
    under_way = Drive(record, clock, timeout=60, max_requests=10, stop=stop)
    async with under_way.running([SendLane(sender, singles())]):
        await sender.sent.wait()
        clock.now = 5
        stop.set()
        await under_way.until(100)
    assert record.seconds == 5
    assert record.num_unfinished == 1
    assert not record.samples


async def test_a_fault_of_the_generator_is_no_figure() -> None:
    clock, record = ManualClock(), LoadRecord(0, 100)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await drive(record, clock, [SendLane(Scripted(clock, []), singles())])
