"""`session` for asyncio: a running sequence as an object, and the streams that step sequences fast."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any, Self, Unpack

from numpy.typing import ArrayLike

from tidegate.client.aio_connection import AsyncConnection
from tidegate.client.asking import (
    Given,
    Integers,
    attach_request,
    columns_request,
    one_input,
    require_none_in_flight,
    session_generate_request,
    step_request,
)
from tidegate.client.options import SamplingOptions
from tidegate.core import Ask, GeneratedToken, GenerationDone, Sampling, SessionInfo, StepResult
from tidegate.errors import TidegateError
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.columns import AttachResult, ColumnsResult, decode_attached, decode_columns_reply
from tidegate.wire.predictions import decode_step
from tidegate.wire.sessions import decode_session


class AsyncSession:
    """`tidegate.client.Session` for asyncio; its attributes and promises. One task at a time may use a session."""

    def __init__(self, connection: AsyncConnection, info: SessionInfo) -> None:
        self._connection = connection
        self.info = info
        self.position: int | None = info.position

    @property
    def id(self) -> str:
        return self.info.id

    async def step(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        top: int = 1,
        every_step: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the server as the call's deadline
    ) -> StepResult:
        """Feed a text, tokens [step] or values [step, feature]: see `Session.step`."""
        request = step_request(self.id, self.position, one_input(text, tokens, values), Ask(top, every_step))
        send = self._connection.call if self.position is None else self._connection.call_repeatedly
        reply = await send(self._connection.sessions.Step, request, self.id, timeout)
        self.position = reply.position
        return decode_step(reply, every_step=every_step)

    async def generate(
        self,
        prompt: Given | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncIterator[GeneratedToken | GenerationDone]:
        """Consume the prompt, if any, then sample: see `Session.generate`."""
        request = session_generate_request(self.id, self.position, prompt, Sampling(**sampling))
        self.position = None
        async for event in self._connection.events(self._connection.sessions.Generate, request, self.id, timeout):
            if isinstance(event, GenerationDone):
                self.position = event.position
            yield event

    def stream(self) -> AsyncSessionStream:
        """Step over one bidirectional stream, which costs less a step than a call and lets steps overlap."""
        return AsyncSessionStream(self._connection, self)

    async def refresh(self) -> SessionInfo:
        """Ask the server how the session stands."""
        request = sessions_pb2.GetSessionRequest(session=self.id)
        self.info = decode_session(await self._connection.call(self._connection.sessions.Get, request, self.id))
        self.position = self.info.position
        return self.info

    async def close(self) -> None:
        """End the session; closing twice succeeds."""
        request = sessions_pb2.CloseRequest(session=self.id)
        await self._connection.call(self._connection.sessions.Close, request, self.id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error of the block is not hidden by one of closing.
        with suppress(TidegateError) if kind else nullcontext():
            await self.close()


class Opening:
    """An opening under way: ``await`` it for the session, or ``async with`` it to have the session closed as well."""

    def __init__(self, opening: Coroutine[Any, Any, AsyncSession]) -> None:
        self._opening = opening

    def __await__(self) -> Generator[Any, Any, AsyncSession]:
        return self._opening.__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._opening
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.__aexit__(kind, error, trace)


class AsyncSessionStream:
    """Steps of one session over one stream. `step` waits for its reply; `send` and `receive` let many overlap."""

    def __init__(self, connection: AsyncConnection, session: AsyncSession) -> None:
        self._session = session
        self._stream = connection.stream(session.id)
        # Of each request in flight: whether every step was asked for.
        self._in_flight: deque[bool] = deque()

    async def step(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> StepResult:
        """As `AsyncSession.step`, but never repeated by itself: after a loss, open a new stream and step again."""
        require_none_in_flight(len(self._in_flight))
        position = self._session.position
        given, ask = one_input(text, tokens, values), Ask(top, every_step)
        await self._send(step_request(self._session.id, position, given, ask))
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
        """Send a step without waiting, and without position: where the session will be is not known yet."""
        await self._send(step_request(self._session.id, None, one_input(text, tokens, values), Ask(top, every_step)))

    async def receive(self) -> StepResult:
        """The reply to the oldest step that has none. An error of that step leaves the stream usable."""
        every_step = self._in_flight.popleft()
        result = decode_step((await self._stream.receive()).step, every_step=every_step)
        self._session.position = result.position
        return result

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()

    async def _send(self, message: sessions_pb2.StepRequest) -> None:
        await self._stream.send(predictor_pb2.StreamRequest(step=message))
        self._in_flight.append(message.every_step)


class AsyncColumnStream:
    """`tidegate.client.ColumnStream` for asyncio: steps of many sessions in one message."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._stream = connection.stream()
        self._num_in_flight = 0

    async def attach(self, sessions: Iterable[str | AsyncSession], first_lane: int = 0) -> AttachResult:
        """Give sessions the lanes ``first_lane``, ``first_lane + 1``…; a lane that was taken is given anew."""
        require_none_in_flight(self._num_in_flight)
        ids = [session if isinstance(session, str) else session.id for session in sessions]
        await self._stream.send(attach_request(first_lane, ids))
        return decode_attached((await self._stream.receive()).attached)

    async def step(
        self,
        lanes: Integers,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        lengths: Integers | None = None,
        positions: Integers | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> ColumnsResult:
        """Step many lanes, each once at most, and wait for all of them: see `ColumnStream.step`."""
        require_none_in_flight(self._num_in_flight)
        await self.send(
            lanes,
            tokens=tokens,
            values=values,
            lengths=lengths,
            positions=positions,
            top=top,
            every_step=every_step,
        )
        return await self.receive()

    async def send(
        self,
        lanes: Integers,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        lengths: Integers | None = None,
        positions: Integers | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> None:
        """Send columns without waiting."""
        ask = Ask(top, every_step)
        await self._stream.send(
            columns_request(lanes, tokens=tokens, values=values, lengths=lengths, positions=positions, ask=ask)
        )
        self._num_in_flight += 1

    async def receive(self) -> ColumnsResult:
        """The answer to the oldest columns that have none."""
        self._num_in_flight -= 1
        return decode_columns_reply((await self._stream.receive()).columns)

    def close(self) -> None:
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
