"""The order of a stream's replies, what holds it back, and its ends: over a client of two lists."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tidegate.clock import Clock
from tidegate.errors import InvalidInputError, UnavailableError
from tidegate.observability.requests import OK, RequestMetrics, outcome_of
from tidegate.transports.reply_queue import Pending, ReadyReply, ReplyQueue, abandon, result_of

SIZE = 4


class Step:
    """A request of the name that its client gave it; its reply is what the test sets as the result."""

    method = "Step"
    session = ""

    def __init__(self, turns: int) -> None:
        self.awaited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.outcome = OK
        self._turns = turns

    async def reply(self) -> str:
        for _ in range(self._turns):
            await asyncio.sleep(0)
        try:
            return str(result_of(self.awaited))
        except Exception as error:  # noqa: BLE001 - it is the reply
            self.outcome = outcome_of(error)
            return self.outcome

    def cancel(self) -> None:
        abandon(self.awaited)


class Stream:
    """A client and a core. A message "known" is answered at once, a number is how often its reply lets others in."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[str] = []
        self.steps: list[Step] = []
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.requests = RequestMetrics(Clock())
        self.queue = ReplyQueue(
            self._read,
            self._write,
            self._submit,
            SIZE,
            begin=self.requests.begin,
            method=lambda name: self.requests.method("test", name),
            end="end",
            has_left=lambda message: message == "left",
        )

    async def _read(self) -> Any:
        message = await self.messages.get()
        if message == "malformed":
            raise InvalidInputError(message)
        return message

    async def _write(self, reply: str) -> None:
        await self.can_write.wait()
        if reply == "gone":
            raise BrokenPipeError
        self.written.append(reply)

    async def _submit(self, message: Any) -> Pending:
        if message == "known":
            return ReadyReply("Step", "known")
        if message == "fault":
            raise ZeroDivisionError
        self.steps.append(Step(0 if isinstance(message, Large) else message))
        return self.steps[-1]

    @property
    def counted(self) -> dict[str, int]:
        return {outcome: count for outcome, count in next(self.requests.snapshots()).outcomes.items() if count}

    async def send(self, *messages: Any) -> None:
        for message in messages:
            self.messages.put_nowait(message)
        await settle()

    def answer(self, step: int, reply: str = "") -> None:
        self.steps[step].awaited.set_result(reply or str(step))


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(run: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(run)
    await settle()
    yield task
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture
async def stream() -> Stream:
    return Stream()


@pytest.fixture
async def serving(stream: Stream) -> AsyncIterator[asyncio.Task[None]]:
    async with running(stream.queue.run()) as task:
        yield task


async def test_a_reply_is_written_by_the_callback_of_its_result(stream: Stream, serving: asyncio.Task[None]) -> None:
    await stream.send(0, 0)
    num_tasks = len(asyncio.all_tasks())
    stream.answer(0)
    await asyncio.sleep(0)
    assert stream.written == ["0"]
    assert len(asyncio.all_tasks()) == num_tasks


async def test_replies_keep_the_order_of_their_requests(stream: Stream, serving: asyncio.Task[None]) -> None:
    await stream.send(0, "known", 0)
    stream.answer(1)
    await settle()
    assert stream.written == []
    stream.answer(0)
    await asyncio.sleep(0)
    assert stream.written == ["0", "known", "1"]


async def test_a_reply_that_is_made_in_turns_keeps_its_place(stream: Stream, serving: asyncio.Task[None]) -> None:
    await stream.send(5, 0, 3)
    for step in range(3):
        stream.answer(step)
    await asyncio.sleep(0)
    assert stream.written == []
    await settle()
    assert stream.written == ["0", "1", "2"]


async def test_no_message_is_read_while_too_many_wait(stream: Stream, serving: asyncio.Task[None]) -> None:
    await stream.send(*[0] * (SIZE + 2))
    assert len(stream.steps) == SIZE
    stream.answer(1)
    await settle()
    assert len(stream.steps) == SIZE
    stream.answer(0)
    await settle()
    assert len(stream.steps) == SIZE + 2


async def test_a_client_that_does_not_keep_up_stops_the_reader(stream: Stream, serving: asyncio.Task[None]) -> None:
    stream.can_write.clear()
    await stream.send(*["known"] * SIZE, 0)
    assert stream.written == []
    assert stream.steps == []
    stream.can_write.set()
    await settle()
    assert stream.written == ["known"] * SIZE
    assert len(stream.steps) == 1


async def test_known_replies_do_not_keep_others_from_their_turn(stream: Stream, serving: asyncio.Task[None]) -> None:
    for _ in range(100 * SIZE):
        stream.messages.put_nowait("known")
    await asyncio.sleep(0)
    assert len(stream.written) <= SIZE


async def test_the_client_s_end_leaves_what_is_pending_to_be_answered(
    stream: Stream, serving: asyncio.Task[None]
) -> None:
    await stream.send(0, 0, "end")
    stream.answer(0)
    await settle()
    assert not serving.done()
    stream.answer(1)
    await serving
    assert stream.written == ["0", "1"]
    assert stream.counted == {"ok": 2}


@pytest.mark.parametrize("message", ["malformed", "fault"])
async def test_a_fault_ends_the_stream_once_what_is_pending_is_answered(
    stream: Stream, serving: asyncio.Task[None], message: Any
) -> None:
    await stream.send(0, message)
    assert not serving.done()
    stream.answer(0)
    with pytest.raises((InvalidInputError, ZeroDivisionError)):
        await serving
    assert stream.written == ["0"]


async def test_a_client_that_left_gets_nothing_and_what_is_pending_is_cancelled(
    stream: Stream, serving: asyncio.Task[None]
) -> None:
    await stream.send(0, 0, "left")
    await serving
    assert [step.awaited.cancelled() for step in stream.steps] == [True, True]
    assert stream.counted == {"cancelled": 2}


@pytest.mark.parametrize("is_waiting", [False, True])
async def test_a_cancelled_stream_cancels_what_is_pending(
    stream: Stream, serving: asyncio.Task[None], is_waiting: bool
) -> None:
    """Also while a reply is being written."""
    if is_waiting:
        stream.can_write.clear()
    await stream.send("known", 0, 0)
    stream.steps[1].awaited.set_exception(InvalidInputError("nobody will ask"))
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert stream.steps[0].awaited.cancelled()
    assert stream.counted == {"ok": 1, "cancelled": 2}


async def test_a_write_that_fails_ends_the_stream(stream: Stream, serving: asyncio.Task[None]) -> None:
    await stream.send(0, 0)
    stream.answer(0, "gone")
    with pytest.raises(BrokenPipeError):
        await serving
    assert stream.steps[1].awaited.cancelled()


async def test_a_drain_answers_what_was_read_and_says_so(stream: Stream, serving: asyncio.Task[None]) -> None:
    await stream.send(0)
    stream.queue.drain()
    await stream.send(0)
    assert len(stream.steps) == 1
    stream.answer(0)
    with pytest.raises(UnavailableError) as caught:
        await serving
    assert caught.value.reason == "DRAINING"
    assert stream.written == ["0"]


async def test_a_stream_that_begins_on_a_draining_server_ends_at_once(stream: Stream) -> None:
    stream.queue.drain()
    with pytest.raises(UnavailableError):
        await stream.queue.run()


async def test_a_result_that_others_cancelled_is_told_as_draining(stream: Stream, serving: asyncio.Task[None]) -> None:
    await stream.send(0)
    stream.steps[0].awaited.cancel()
    await settle()
    assert stream.written == ["unavailable"]


class Large:
    """A message that would be missed."""


@pytest.mark.parametrize("end", ["idle", "end", "left", "fault", "read fails", "write fails", "cancelled", "drained"])
async def test_nothing_keeps_a_message_once_it_is_answered_or_its_stream_has_ended(end: str) -> None:
    """No cycle that would wait for the garbage collector."""
    gc.disable()
    try:
        stream = Stream()
        serving = asyncio.create_task(stream.queue.run())
        message = Large()
        known = weakref.ref(message)
        await stream.send(message)
        del message
        stream.answer(0, "gone" if end == "write fails" else "")
        faults = {"end": "end", "left": "left", "fault": "fault", "read fails": "malformed"}
        await stream.send(*[faults[end]] if end in faults else [])
        if end == "drained":
            stream.queue.drain()
        elif end == "cancelled":
            serving.cancel()
        await settle()
        assert serving.done() == (end != "idle")
        queue = weakref.ref(stream.queue)
        if end != "idle":
            serving.exception() if not serving.cancelled() else None
            del serving
            stream.messages = asyncio.Queue()
            del stream.queue
            assert queue() is None
        else:
            serving.cancel()
        assert known() is None
    finally:
        gc.enable()
