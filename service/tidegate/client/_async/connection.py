"""A connection to a server: calls with their errors rebuilt, the wait before another try, and the open stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from grpc import aio

from tidegate.api import GeneratedToken, GenerationDone
from tidegate.client.arguments import ARGUMENT_ERRORS, argument_error
from tidegate.client.channel import ChannelPlan
from tidegate.client.endpoint import Endpoint
from tidegate.client.grpc_async import AsyncCall, AsyncChannel
from tidegate.client.retry import Retry, Tries, call_error
from tidegate.errors import TidegateError, UnavailableError
from tidegate.v1 import predictor_pb2, types_pb2
from tidegate.wire.predictions import decode_event

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class AsyncConnection:
    """The calls of a client, which tasks, or threads, may share."""

    def __init__(
        self, plan: ChannelPlan, timeout: float, retry: Retry, sleep: Callable[[float], Awaitable[Any]]
    ) -> None:
        self.plan = plan
        self.retry = retry
        self._timeout = timeout
        self._sleep = sleep
        self._channel = AsyncChannel(plan)
        self.models = self._channel.models
        self.predictor = self._channel.predictor
        self.sessions = self._channel.sessions

    async def call(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        session: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the server as the call's deadline
    ) -> Reply:
        """Call once; ``timeout`` in seconds, None is the client's."""
        metadata = self.plan.metadata(session)
        try:
            return await self._channel.call(method, request, timeout or self._timeout, metadata)
        except grpc.RpcError as error:
            raise call_error(error, self.plan.endpoint) from error
        except ARGUMENT_ERRORS:
            raise argument_error(session=session, timeout=timeout) from None

    async def call_repeatedly(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        session: str,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> Reply:
        """Call, and call again while the server is away; only for what may be applied twice without harm."""
        tries = None
        while True:
            try:
                return await self.call(method, request, session, timeout)
            except UnavailableError as error:
                tries = tries or self.retry.begin()
                if not await self.wait(tries, error):
                    raise

    async def wait(self, tries: Tries, error: TidegateError) -> bool:
        """Wait before the next try, also for a connection if there is none. Return False if there is no next try."""
        pause = tries.next_pause(error)
        if pause is None:
            return False
        await self._sleep(pause)
        await self._channel.connect(tries.connect_timeout)
        return True

    async def events(
        self,
        method: aio.UnaryStreamMultiCallable[Request, types_pb2.GenerateReply],
        request: Request,
        session: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> AsyncGenerator[GeneratedToken | GenerationDone]:
        """Yield a generation's events as they come. Closing the generator cancels the generation."""
        metadata = self.plan.metadata(session)
        try:
            call = self._channel.open_events(method, request, timeout or self._timeout, metadata)
        except ARGUMENT_ERRORS:
            raise argument_error(session=session, timeout=timeout) from None
        event = None
        try:
            while (reply := await call.read()) is not None:
                event = decode_event(reply)
                yield event
        except grpc.RpcError as error:
            if not isinstance(event, GenerationDone):  # else all is told, and only the end of the call was lost
                raise call_error(error, self.plan.endpoint) from error
        finally:
            call.cancel()

    async def events_repeatedly(
        self,
        method: aio.UnaryStreamMultiCallable[Request, types_pb2.GenerateReply],
        request: Request,
        session: str,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> AsyncGenerator[GeneratedToken | GenerationDone]:
        """Yield events, asking again while the server is away; what it then tells a second time is skipped.

        Only for a request that names a position and is on a session: that makes the server tell the same again.
        """
        last_position, tries = -1, None
        while True:
            try:
                async with aclosing(self.events(method, request, session, timeout)) as events:
                    async for event in events:
                        if isinstance(event, GenerationDone) or event.position > last_position:
                            last_position, tries = event.position, None
                            yield event
            except UnavailableError as error:
                tries = tries or self.retry.begin()
                if not await self.wait(tries, error):
                    raise
            else:
                return

    def stream(self, session: str = "") -> AsyncOpenStream:
        return AsyncOpenStream(self._channel.open_stream(self.plan.metadata(session)), self.plan.endpoint)

    async def close(self) -> None:
        await self._channel.close()


class AsyncOpenStream:
    """One `Predictor.Stream`: requests go out, replies come in, in order."""

    def __init__(self, call: AsyncCall[predictor_pb2.StreamReply], endpoint: Endpoint) -> None:
        self._call = call
        self._endpoint = endpoint

    async def send(self, request: predictor_pb2.StreamRequest) -> None:
        """Send, or, if the stream has ended, leave it to `receive` to say why."""
        await self._call.write(request)

    async def receive(self) -> predictor_pb2.StreamReply:
        """Return the next reply; it may be an error, after which the stream goes on.

        Raises:
            TidegateError: The stream has ended.
        """
        try:
            reply = await self._call.read()
        except grpc.RpcError as error:
            raise call_error(error, self._endpoint) from error
        if reply is None:
            raise UnavailableError("the server ended the stream")
        return reply

    def close(self) -> None:
        """End the stream; what is in flight is cancelled."""
        self._call.cancel()
