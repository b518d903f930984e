"""`stream` for asyncio: steps of one session over a stream that goes on by itself after a loss."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from numpy.typing import ArrayLike

from tidegate.api import Ask, StepResult
from tidegate.client.aio_connection import AsyncConnection, AsyncOpenStream
from tidegate.client.asking import (
    Integers,
    num_steps,
    one_input,
    require_in_flight,
    require_none_in_flight,
    require_open,
    step_request,
)
from tidegate.client.flight import Flight, ReplyLostError
from tidegate.client.passing import PASSING, passing_error
from tidegate.v1 import predictor_pb2
from tidegate.wire.errors import decode_error
from tidegate.wire.predictions import decode_step

if TYPE_CHECKING:
    from tidegate.client.aio_session import AsyncSession
    from tidegate.client.retry import Tries


class AsyncSessionStream:
    """Steps of one session over one stream. `step` waits for its reply; `send` and `receive` let many overlap.

    When the stream breaks or its server drains, another is opened and what is not answered is sent again with its
    position: each step is applied once. See `Session.stream` for ``overlap``.
    """

    def __init__(self, connection: AsyncConnection, session: AsyncSession, overlap: int) -> None:
        self._connection = connection
        self._session = session
        self._flight = Flight(overlap)
        self._stream: AsyncOpenStream | None = None
        self._is_closed = False

    async def step(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> StepResult:
        """As `Session.step`."""
        require_none_in_flight(len(self._flight))
        await self.send(text, tokens=tokens, values=values, top=top, every_step=every_step)
        return await self.receive()

    async def send(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> None:
        """Send a step without waiting. It goes out now, or, over ``overlap``, when `receive` has made room for it."""
        given = one_input(text, tokens, values)
        self._flight.add(step_request(self._session.id, None, given, Ask(top, every_step)), num_steps(given))
        try:
            await self._push()
        except BaseException:
            self._drop()
            self._flight.withdraw()
            raise

    async def receive(self) -> StepResult:
        """The reply to the oldest step that has none, or its error; the stream is usable afterwards.

        After an error the steps sent behind it, which cannot apply where they were meant to, are conflicts.

        Raises:
            ReplyLostError: The step was applied, its reply went down with a connection.
            PositionConflictError, UnavailableError, DeadlineExceededError: As `Session.step`.
        """
        require_in_flight(len(self._flight))
        try:
            reply = await self._next_reply()
        except BaseException:
            # Given up. Whoever interrupted us left a reply behind, which the next call must not take for its own.
            self._drop()
            self._flight.pop()
            raise
        chunk = self._flight.pop()
        if reply.HasField("error"):
            error = decode_error(reply.error)
            if not self._flight.is_lost(chunk, error):
                raise error
            assert chunk.end is not None
            self._session.position = chunk.end
            raise ReplyLostError(chunk.end) from error
        self._session.position = reply.step.position
        return decode_step(reply.step, every_step=chunk.message.every_step)

    def close(self) -> None:
        """End the stream; what is in flight is cancelled."""
        self._is_closed = True
        self._drop()

    def __repr__(self) -> str:
        return f"<AsyncSessionStream of {self._session.id} at {self._session.position}, {len(self._flight)} in flight>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _next_reply(self) -> predictor_pb2.StreamReply:
        """The reply to the oldest chunk, over as many streams as it takes."""
        tries: Tries | None = None
        while True:
            try:
                reply = await (await self._push()).receive()
                passing = passing_error(reply)
                if passing is None:
                    return reply
                raise passing
            except PASSING as error:
                can_repeat = self._flight.can_repeat
                self._drop()
                tries = tries or self._connection.retry.begin()
                if not (can_repeat and await self._connection.wait(tries, error)):
                    raise

    async def _push(self) -> AsyncOpenStream:
        """Send what may go out."""
        require_open(is_closed=self._is_closed)
        if self._stream is None:
            self._stream = self._connection.stream(self._session.id)
        for message in self._flight.release(self._session.position):
            await self._stream.send(predictor_pb2.StreamRequest(step=message))
        return self._stream

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._flight.lose()
