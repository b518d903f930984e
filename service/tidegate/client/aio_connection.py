"""`connection` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar, cast

import grpc
from grpc import aio
from grpc.aio import EOF  # type: ignore[attr-defined]

from tidegate.api import GeneratedToken, GenerationDone
from tidegate.client.arguments import MISFITS, misfit
from tidegate.client.channel import KNOCK, ChannelPlan
from tidegate.client.forks import FORKS, Origin
from tidegate.client.passing import why_ended
from tidegate.client.retry import Retry, Tries
from tidegate.errors import TidegateError, UnavailableError
from tidegate.v1 import models_pb2_grpc, predictor_pb2, predictor_pb2_grpc, sessions_pb2_grpc, types_pb2
from tidegate.wire.predictions import decode_event

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class AsyncConnection:
    """The channel and its stubs; belongs to the event loop that it is made in."""

    def __init__(
        self, plan: ChannelPlan, timeout: float, retry: Retry, sleep: Callable[[float], Awaitable[Any]]
    ) -> None:
        self.plan = plan
        self.origin = Origin()
        target, options = plan.endpoint.target, plan.options
        if plan.credentials is None:
            self._channel = aio.insecure_channel(target, options=options)
        else:
            self._channel = aio.secure_channel(target, plan.credentials, options=options)
        FORKS.watch()
        FORKS.open_async.add(self)
        self._timeout = timeout
        self._sleep = sleep
        self.retry = retry
        # Whatever it is answered: when it is, there is a connection.
        self._knock = self._channel.unary_unary(KNOCK, bytes, bytes)
        self.models = models_pb2_grpc.ModelsStub(self._channel)
        self.predictor = predictor_pb2_grpc.PredictorStub(self._channel)
        self.sessions = sessions_pb2_grpc.SessionsStub(self._channel)

    async def call(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        session: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the server as the call's deadline
    ) -> Reply:
        """Call once; ``timeout`` in seconds, None is the client's."""
        self.origin.require_here()
        metadata = self.metadata(session)
        try:
            return await method(request, timeout=timeout or self._timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise why_ended(error, self.plan.endpoint) from error
        except MISFITS:
            raise misfit(session=session, timeout=timeout) from None

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
        """Wait before the next try, for the connection too where there is none; False where there shall be none."""
        pause = tries.next_pause(error)
        if pause is None:
            return False
        await self._sleep(pause)
        with suppress(grpc.RpcError):
            await self._knock(b"", timeout=tries.patience, wait_for_ready=True)
        return True

    async def events(
        self,
        method: aio.UnaryStreamMultiCallable[Request, types_pb2.GenerateReply],
        request: Request,
        session: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> AsyncGenerator[GeneratedToken | GenerationDone]:
        """A generation's events as they come. Closing the generator cancels the generation."""
        self.origin.require_here()
        metadata = self.metadata(session)
        try:
            call = method(request, timeout=timeout or self._timeout, metadata=metadata)
        except MISFITS:
            raise misfit(session=session, timeout=timeout) from None
        told = None
        try:
            async for event in call:
                told = decode_event(event)
                yield told
                self.origin.require_here()
        except grpc.RpcError as error:
            if not isinstance(told, GenerationDone):  # else all is told, and only the end of the call was lost
                raise why_ended(error, self.plan.endpoint) from error
        finally:
            if self.origin.is_here:
                call.cancel()

    async def events_repeatedly(
        self,
        method: aio.UnaryStreamMultiCallable[Request, types_pb2.GenerateReply],
        request: Request,
        session: str,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> AsyncGenerator[GeneratedToken | GenerationDone]:
        """Events, asked for again while the server is away; what it then tells a second time is passed over.

        Only for a request that names a position and is on a session: that is what lets the server tell the same.
        """
        told, tries = -1, None
        while True:
            try:
                async with aclosing(self.events(method, request, session, timeout)) as events:
                    async for event in events:
                        if isinstance(event, GenerationDone) or event.position > told:
                            told, tries = event.position, None
                            yield event
            except UnavailableError as error:
                tries = tries or self.retry.begin()
                if not await self.wait(tries, error):
                    raise
            else:
                return

    def stream(self, session: str = "") -> AsyncOpenStream:
        return AsyncOpenStream(self, session)

    def metadata(self, session: str) -> aio.Metadata:
        return aio.Metadata(*self.plan.metadata(session))

    async def close(self) -> None:
        if self.origin.is_here:
            FORKS.open_async.discard(self)
            await self._channel.close(None)


class AsyncOpenStream:
    """One `Predictor.Stream`: requests go out, replies come in, in order."""

    def __init__(self, connection: AsyncConnection, session: str) -> None:
        self._origin, self._endpoint = connection.origin, connection.plan.endpoint
        self._origin.require_here()
        # Without an iterator of requests the call is written to; the published stub does not know that form.
        stream: Any = connection.predictor.Stream
        self._call = stream(metadata=connection.metadata(session))

    async def send(self, request: predictor_pb2.StreamRequest) -> None:
        """Send, or, where the stream has ended, leave it to `receive` to say why."""
        self._origin.require_here()
        with suppress(asyncio.InvalidStateError, grpc.RpcError):
            await self._call.write(request)

    async def receive(self) -> predictor_pb2.StreamReply:
        """The next reply; it may be an error, after which the stream goes on.

        Raises:
            TidegateError: The stream has ended.
        """
        self._origin.require_here()
        try:
            reply = await self._call.read()
        except grpc.RpcError as error:
            raise why_ended(error, self._endpoint) from error
        if reply is EOF:
            raise UnavailableError("the server ended the stream")
        return cast("predictor_pb2.StreamReply", reply)

    def close(self) -> None:
        """End the stream; what is in flight is cancelled."""
        if self._origin.is_here:
            self._call.cancel()
