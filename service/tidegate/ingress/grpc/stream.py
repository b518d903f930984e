"""`Predictor.Stream`: many steps in flight on one call, answered in the order they were asked.

Theory of operation. A reader takes messages, hands their steps to the core at once and puts what is pending in line;
the call's own task takes each from the line when it is ready and writes its reply. So pipelined messages, and
streams, meet in one batch. `MAX_IN_FLIGHT` messages wait at most: then the reader stops, and HTTP/2 stops the client.
The end comes in one of four ways: the client half-closes (what is pending is answered), it cancels or vanishes (what
is pending is cancelled), the server drains (reading stops, what is pending is answered, then UNAVAILABLE), or a fault
of ours.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc.aio import EOF  # type: ignore[attr-defined]

from tidegate.core import StepResult
from tidegate.errors import InvalidInputError, TidegateError, UnavailableError
from tidegate.ingress.grpc.calls import Context, client_seconds, conceal, session_in_metadata
from tidegate.ingress.grpc.lanes import Lanes
from tidegate.ingress.grpc.line import Line, Pending
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.columns import decode_columns, fill_columns
from tidegate.wire.errors import encode_error
from tidegate.wire.inputs import decode_ask, decode_input
from tidegate.wire.predictions import fill_step

if TYPE_CHECKING:
    from tidegate.service import Service

MAX_IN_FLIGHT = 32


class Ready:
    """A reply that was known at once: an attachment or a refusal."""

    awaited = None

    def __init__(self, reply: predictor_pb2.StreamReply) -> None:
        self._reply = reply

    async def reply(self) -> predictor_pb2.StreamReply:
        return self._reply

    def cancel(self) -> None:
        """Nothing runs."""


class PendingStep:
    """Steps of one session."""

    __slots__ = ("awaited",)

    def __init__(self, future: asyncio.Future[StepResult]) -> None:
        self.awaited = future

    async def reply(self) -> predictor_pb2.StreamReply:
        reply = predictor_pb2.StreamReply()
        try:
            fill_step(reply.step, self.awaited.result())
        except Exception as error:  # noqa: BLE001 - it is this message's answer
            return refusal(error)
        return reply

    def cancel(self) -> None:
        self.awaited.cancel()


class PendingColumns:
    """Steps of many lanes: of each the future of its result, or the error that it met at once."""

    def __init__(self, lanes: list[int], submitted: list[asyncio.Future[StepResult] | TidegateError]) -> None:
        self._lanes = lanes
        self._submitted = submitted
        last = submitted[-1]
        self.awaited = last if isinstance(last, asyncio.Future) else None

    async def reply(self) -> predictor_pb2.StreamReply:
        reply = predictor_pb2.StreamReply()
        fill_columns(reply.columns, self._lanes, await self._results())
        return reply

    def cancel(self) -> None:
        for future in self._submitted:
            if isinstance(future, asyncio.Future):
                future.cancel()

    async def _results(self) -> list[StepResult | TidegateError]:
        # Lanes end in the same tick, mostly: awaiting them in turn suspends once, a finished future costs nothing.
        results: list[StepResult | TidegateError] = []
        for future in self._submitted:
            if isinstance(future, TidegateError):
                results.append(future)
                continue
            try:
                results.append(await future)
            except Exception as error:  # noqa: BLE001 - it is this lane's answer
                results.append(conceal(error))
        return results


class StepStream:
    """One client's stream."""

    def __init__(self, service: Service, context: Context) -> None:
        self._service = service
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._lanes = Lanes(service)
        self._session = session_in_metadata(context)
        seconds = client_seconds(context)
        self._deadline = None if seconds is None else self._loop.time() + seconds
        self._line = Line(MAX_IN_FLIGHT)
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
                self._line.put(await self._submit(request))
        finally:
            self._line.close()

    async def _next(self) -> predictor_pb2.StreamRequest | None:
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
            await self._context.write(reply)
            self._line.answered()

    async def _submit(self, request: predictor_pb2.StreamRequest) -> Pending:
        kind = request.WhichOneof("message")
        try:
            if kind == "step":
                return self._submit_step(request.step)
            if kind == "columns":
                return self._submit_columns(request.columns)
            if kind == "attach":
                attached = await self._lanes.attach(request.attach)
                return Ready(predictor_pb2.StreamReply(attached=attached))
            raise InvalidInputError("the message is empty: set one of step, attach and columns")
        except Exception as error:  # noqa: BLE001 - it is this message's answer
            return Ready(refusal(error))

    def _submit_step(self, message: sessions_pb2.StepRequest) -> Pending:
        self._session = message.session or self._session
        if not self._session:
            raise InvalidInputError("no session: the first step of a stream must name one")
        position = message.position if message.HasField("position") else None
        asked, ask = decode_input(message), decode_ask(message)
        return PendingStep(self._service.step(self._session, asked, ask, position, self._time_limit()))

    def _submit_columns(self, message: predictor_pb2.Columns) -> Pending:
        numbers, inputs, positions, ask = decode_columns(message)
        lanes, step, deadline = self._lanes.take(numbers), self._service.step, self._time_limit()
        submitted: list[asyncio.Future[StepResult] | TidegateError] = []
        for (session, _, failure), steps, position in zip(lanes, inputs, positions, strict=True):
            try:
                submitted.append(failure or step(session, steps, ask, position, deadline))
            except Exception as error:  # noqa: BLE001 - it is this lane's answer
                submitted.append(conceal(error))
        return PendingColumns(numbers, submitted)

    def _time_limit(self) -> float:
        """The deadline of a message read now: the stream's, where its client set one."""
        if self._deadline is not None:
            return self._deadline
        return self._loop.time() + self._service.settings.request_timeout


def refusal(error: Exception) -> predictor_pb2.StreamReply:
    """The reply to a message that failed as a whole."""
    return predictor_pb2.StreamReply(error=encode_error(conceal(error)))
