"""Replies of a stream in the order of its requests, while many requests are in flight: for every transport alike.

Theory of operation. A reader takes messages, hands each to the core at once and queues what is pending. So pipelined
messages, and streams, meet in one batch. When the reply at the head of the queue is ready, the engine's tick calls back
and so writes it, and those behind it that are ready too: no task wakes and no future is made for that. Where writing
has to wait, for a client that does not keep up or between the slices of a large reply, callbacks go on with it. The
requests whose replies are not written are bounded in number: then the reader stops, and the transport stops the client.

The end comes in one of four ways: the client says that it sends no more (what is pending is answered), it leaves (what
is pending is cancelled), the server drains (reading stops, what is pending is answered, then UNAVAILABLE), or there is
a fault of ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from tidegate.errors import UnavailableError
from tidegate.observability.requests import CANCELLED, OK, MethodMetrics, RequestStart


class Awaited(Protocol):
    """A result that is due: an ``asyncio.Future``, or a `DirectReply` that calls back as soon as it has it."""

    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def cancel(self) -> bool: ...
    def result(self) -> Any: ...
    def exception(self) -> BaseException | None: ...
    def add_done_callback(self, callback: Callable[[Any], object], /) -> None: ...


class Pending(Protocol):
    """A request whose reply is due; cancelling it leaves its sessions untouched.

    Attributes:
        method: What it is counted as.
        session: That it is about; empty where it is about none or many.
        outcome: How it ended, once `reply` has returned.
    """

    @property
    def method(self) -> str: ...
    @property
    def session(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def awaited(self) -> Awaited | None:
        """What the reply mainly waits for, None where it is known."""

    async def reply(self) -> Any:
        """Return what is to be written; it rarely has to wait for more than ``awaited``."""

    def cancel(self) -> object: ...


class ReadyReply:
    """A reply that was known at once, like a refusal."""

    awaited = None

    def __init__(self, method: str, reply: Any, outcome: str = OK, session: str = "") -> None:
        self._reply = reply
        self.method = method
        self.outcome = outcome
        self.session = session

    async def reply(self) -> Any:
        return self._reply

    def cancel(self) -> None:
        """Nothing runs."""


class ReplyQueue:
    """One client's stream.

    Args:
        read: Returns the client's next message, ``end`` where there are no more.
        write: Sends a reply; it waits while the client does not keep up.
        submit: Hands a message over. What it raises ends the stream, once what is pending is answered.
        size: Messages that may wait for their replies.
        begin: Notes that a message came in, for `MethodMetrics.end`.
        method: Returns where messages of a kind are counted.
        end: What ``read`` returns at the end.
        has_left: Whether a message says that the client is gone and wants no reply; None: none does.

    Attributes:
        num_unwritten: Messages that wait for their replies.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[Any], Awaitable[None]],
        submit: Callable[[Any], Awaitable[Pending]],
        size: int,
        *,
        begin: Callable[[], RequestStart],
        method: Callable[[str], MethodMetrics],
        end: Any = None,
        has_left: Callable[[Any], bool] | None = None,
    ) -> None:
        self._read = read
        self._write = write
        self._submit = submit
        self._size = size
        self._begin = begin
        self._method = cache(method)
        self._end = end
        self._tells_leaving = has_left
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Pending, RequestStart]] = deque()
        self.num_unwritten = 0
        self._room: asyncio.Future[None] | None = None
        self._writing: Coroutine[Any, None, None] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._reader: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._has_left = False
        self._is_reading = False
        self._is_draining = False
        self._is_stopped = False
        self._is_closed = False

    async def run(self) -> None:
        """Answer until one of the four ends.

        Raises:
            UnavailableError: The server drains; everything that was read has been answered.
        """
        self._reader = self._loop.create_task(self._read_all())
        self._reader.add_done_callback(self._on_read)
        try:
            await self._ended
        finally:
            if self._reader is not None:
                self._reader.cancel()
            if self._writing is not None:
                self._writing.close()
                self._writing = None
            while self._waiting:
                pending, begun = self._waiting.popleft()
                pending.cancel()
                self._method(pending.method).end(begun, CANCELLED, pending.session)
        # Here and in `_on_read`, nothing keeps an error: it has frames that have messages, and this stream.
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
            if self._is_draining:
                raise draining()
        finally:
            del failure

    def drain(self) -> None:
        """Read no further message. One that was read is answered, whatever stage it is in."""
        self._is_draining = True
        self.stop()

    def stop(self) -> None:
        """Read no further message, and end once all are answered."""
        self._is_stopped = True
        if self._is_reading and self._reader is not None:
            self._reader.cancel()

    @property
    def is_held_up(self) -> bool:
        """Whether a reply that is ready waits to be written."""
        return self._writing is not None

    async def _read_all(self) -> None:
        while True:
            while self.num_unwritten >= self._size:
                self._room = self._loop.create_future()
                await self._room
            if self._is_stopped:
                return
            self._is_reading = True
            request = await self._read()
            self._is_reading = False
            if request is self._end:
                return
            if self._tells_leaving is not None and self._tells_leaving(request):
                self._has_left = True
                return
            begun = self._begin()
            pending = await self._submit(request)
            self.num_unwritten += 1
            self._waiting.append((pending, begun))
            # Each has its callback, so that what is logged in it is told of the right request.
            if (awaited := pending.awaited) is None or awaited.done():
                self._loop.call_soon(self._flush)
            else:
                awaited.add_done_callback(self._flush)
            del request, pending, awaited  # the next message may not come for hours

    def _on_read(self, reader: asyncio.Task[None]) -> None:
        self._reader = None
        self._is_closed = True
        if not reader.cancelled():
            self._failure = reader.exception()
        if self._has_left:
            self._finish()
        self._check_end()

    def _flush(self, _: object = None) -> None:
        """Write the replies that are ready."""
        if self._writing is None and self._is_ready():
            self._writing = self._write_ready()
            self._go_on()

    def _go_on(self, _: object = None) -> None:
        """Go on writing until all is written or there is something to wait for, as a task would, but without one."""
        if self._writing is None:
            return
        try:
            waited = self._writing.send(None)
        except StopIteration:
            self._writing = None
            self._check_end()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - `run` raises it
            self._writing = None
            self._finish(error)
        else:
            if waited is None:  # only a turn for others
                self._loop.call_soon(self._go_on)
            else:
                # As a task does, or others could not await the future: asyncio.futures says what the flag is for. A
                # task for each write that waits, as all of grpc.aio's do, costs 7 µs.
                waited._asyncio_future_blocking = False  # noqa: SLF001
                waited.add_done_callback(self._go_on)

    def _is_ready(self) -> bool:
        if not self._waiting:
            return False
        awaited = self._waiting[0][0].awaited
        return awaited is None or awaited.done()

    async def _write_ready(self) -> None:
        while True:
            pending, begun = self._waiting[0]
            reply = await pending.reply()
            self._waiting.popleft()
            # Before the client is told: then it can see that it was counted.
            self._method(pending.method).end(begun, pending.outcome, pending.session)
            await self._write(reply)
            self.num_unwritten -= 1
            if self._room is not None and not self._room.done():
                self._room.set_result(None)
            if not self._is_ready():
                return

    def _check_end(self) -> None:
        if self._is_closed and not self._waiting and self._writing is None:
            self._finish()

    def _finish(self, error: BaseException | None = None) -> None:
        if self._ended.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self._ended.cancel()
            return
        self._failure = error or self._failure
        self._ended.set_result(None)


class OpenStreams:
    """The streams of one kind that are open. A drain ends them, and at once those that are opened later."""

    def __init__(self) -> None:
        self._open: dict[ReplyQueue, asyncio.Task[Any] | None] = {}
        self._is_draining = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[ReplyQueue]:
        return iter(self._open)

    @contextmanager
    def holding(self, queue: ReplyQueue) -> Iterator[None]:
        """Know of a stream for as long as the block lasts."""
        if self._is_draining:
            queue.drain()
        self._open[queue] = asyncio.current_task()
        try:
            yield
        finally:
            del self._open[queue]

    def drain(self) -> None:
        """Let every stream answer what it has read, then end."""
        self._is_draining = True
        for queue in self._open:
            queue.drain()

    def end(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """Let the streams of these tasks answer what they have read, then end."""
        for queue, task in self._open.items():
            if task in tasks:
                queue.drain()

    async def wait_closed(self) -> None:
        """Return when the tasks of all streams have ended."""
        tasks = [task for task in self._open.values() if task is not None]
        if tasks:
            await asyncio.wait(tasks)


def draining() -> UnavailableError:
    """Return the error that ends a stream of a server that drains."""
    return UnavailableError("the server is draining: open the stream again", reason="DRAINING", retry_after=1)


def result_of(future: Awaited) -> Any:
    """Return the result of a future that is done; a cancelled one, for which its stream was not the cause, is draining.

    Raises:
        UnavailableError: It was cancelled.
        Exception: What it failed with.
    """
    if future.cancelled():
        raise draining()
    return future.result()


def abandon(future: Awaited) -> None:
    """Cancel what nobody waits for any more; where it has failed, take note, or asyncio complains that nobody did."""
    if not future.cancel() and not future.cancelled():
        future.exception()
