"""A bidirectional stream whose replies come in the order of its requests, while many requests are in flight.

Theory of operation. A reader takes messages, hands each to the core at once and puts what is pending in line; the
call's own task takes each from the line when it is ready and writes its reply. So pipelined messages, and streams,
meet in one batch. ``max_in_flight`` messages wait at most: then the reader stops, and HTTP/2 stops the client. The end
comes in one of four ways: the client half-closes (what is pending is answered), it cancels or vanishes (what is
pending is cancelled), the server drains (reading stops, what is pending is answered, then UNAVAILABLE), or a fault of
ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from grpc.aio import EOF  # type: ignore[attr-defined]

from tidegate.errors import UnavailableError
from tidegate.observe.requests import CANCELLED, Begun, Requests
from tidegate.transports.grpc.calls import Context
from tidegate.transports.grpc.line import Line, Pending


class OrderedStream:
    """One client's stream.

    Args:
        context: The call's.
        submit: Hands a message over. What it raises ends the stream.
        max_in_flight: Messages that may wait for their replies.
        counted: Where messages are counted, each as a request of an interface.
    """

    def __init__(
        self,
        context: Context,
        submit: Callable[[Any], Awaitable[Pending]],
        max_in_flight: int,
        counted: tuple[Requests, str],
    ) -> None:
        self._context = context
        self._requests, self._interface = counted
        self._begun: deque[tuple[Pending, Begun]] = deque()
        self._submit = submit
        self._line = Line(max_in_flight)
        self._is_draining = False
        self._is_reading = False

    async def run(self) -> None:
        """Answer until one of the four ends.

        Raises:
            UnavailableError: The server drains; everything that was read has been answered.
        """
        self._reader = asyncio.create_task(self._read())
        try:
            await self._write()
        finally:
            self._reader.cancel()
            self._line.cancel()
            while self._begun:
                self._end(CANCELLED)
        if self._is_draining:
            raise UnavailableError("the server is draining: open the stream again", reason="DRAINING", retry_after=1)
        self._reader.result()

    def drain(self) -> None:
        """Read no further message. One that was read is answered, whatever stage it is in."""
        self._is_draining = True
        if self._is_reading:
            self._reader.cancel()

    async def _read(self) -> None:
        try:
            while (request := await self._next()) is not None:
                begun = self._requests.begin(self._context.invocation_metadata)
                pending = await self._submit(request)
                self._begun.append((pending, begun))
                self._line.put(pending)
        finally:
            self._line.close()

    async def _next(self) -> Any:
        """The next message, None at the end."""
        await self._line.wait_for_room()
        if self._is_draining:
            return None
        self._is_reading = True
        try:
            request: Any = await self._context.read()
        finally:
            self._is_reading = False
        return None if request is EOF else request

    async def _write(self) -> None:
        while (pending := await self._line.take()) is not None:
            try:
                reply = await pending.reply()
            except BaseException:
                pending.cancel()
                raise
            self._end(pending.outcome)
            await self._context.write(reply)
            self._line.answered()

    def _end(self, outcome: str) -> None:
        """Count the message that has waited longest."""
        pending, begun = self._begun.popleft()
        self._requests.method(self._interface, pending.method).end(begun, outcome, pending.session)
