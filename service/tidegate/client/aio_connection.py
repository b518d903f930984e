"""`connection` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc
from grpc import aio
from grpc.aio import EOF  # type: ignore[attr-defined]

from tidegate.client.asking import OPTIONS, metadata
from tidegate.client.retry import Retry
from tidegate.core import GeneratedToken, GenerationDone
from tidegate.errors import InternalError, TidegateError, UnavailableError
from tidegate.v1 import models_pb2_grpc, predictor_pb2, predictor_pb2_grpc, sessions_pb2_grpc, types_pb2
from tidegate.wire.errors import decode_error, decode_status
from tidegate.wire.predictions import decode_event

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class AsyncConnection:
    """The channel and its stubs; belongs to the event loop that it is made in."""

    def __init__(self, address: str, timeout: float, retry: Retry, sleep: Callable[[float], Awaitable[Any]]) -> None:
        self._channel = aio.insecure_channel(address, options=OPTIONS)
        self._timeout = timeout
        self._retry = retry
        self._sleep = sleep
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
        try:
            return await method(request, timeout=timeout or self._timeout, metadata=_metadata(session))
        except grpc.RpcError as error:
            raise decode_status(error) from error

    async def call_repeatedly(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        session: str,
        timeout: float | None,  # noqa: ASYNC109 - as above
    ) -> Reply:
        """Call, and call again while the server is away; only for what may be applied twice without harm."""
        for bound in self._retry.bounds():
            try:
                return await self.call(method, request, session, timeout)
            except UnavailableError as error:
                await self._sleep(self._retry.pause(bound, error))
        return await self.call(method, request, session, timeout)

    async def events(
        self,
        method: aio.UnaryStreamMultiCallable[Request, types_pb2.GenerateReply],
        request: Request,
        session: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> AsyncIterator[GeneratedToken | GenerationDone]:
        """A generation's events as they come. Closing the generator cancels the generation."""
        call = method(request, timeout=timeout or self._timeout, metadata=_metadata(session))
        try:
            async for event in call:
                yield decode_event(event)
        except grpc.RpcError as error:
            raise decode_status(error) from error
        finally:
            call.cancel()

    def stream(self, session: str = "") -> AsyncOpenStream:
        return AsyncOpenStream(self.predictor, session)

    async def close(self) -> None:
        await self._channel.close(None)


class AsyncOpenStream:
    """One `Predictor.Stream`: requests go out, replies come in, in order."""

    def __init__(self, predictor: predictor_pb2_grpc.PredictorAsyncStub, session: str) -> None:
        # Without an iterator of requests the call is written to; the published stub does not know that form.
        stream: Any = predictor.Stream
        self._call = stream(metadata=_metadata(session))

    async def send(self, request: predictor_pb2.StreamRequest) -> None:
        """Send, or, where the stream has ended, raise why."""
        try:
            await self._call.write(request)
        except asyncio.InvalidStateError:
            await self._read()
        except grpc.RpcError as error:
            raise _broken(error) from error

    async def receive(self) -> predictor_pb2.StreamReply:
        """The next reply.

        Raises:
            TidegateError: The request failed and the stream goes on, or the stream ended.
        """
        reply = await self._read()
        if reply.HasField("error"):
            raise decode_error(reply.error)
        return reply

    def close(self) -> None:
        """End the stream; what is in flight is cancelled."""
        self._call.cancel()

    async def _read(self) -> predictor_pb2.StreamReply:
        try:
            reply = await self._call.read()
        except grpc.RpcError as error:
            raise decode_status(error) from error
        if reply is EOF:
            raise UnavailableError("the server ended the stream")
        return cast("predictor_pb2.StreamReply", reply)


def _broken(error: grpc.RpcError) -> TidegateError:
    """What a failed write says. Where the end of the stream and a write cross, gRPC puts a status of its own, INTERNAL,
    in the place of the server's, which is lost.
    """
    told = decode_status(error)
    if isinstance(told, InternalError) and told.reason == InternalError.default_reason:
        return UnavailableError("the stream broke while a request was sent", reason="STREAM_BROKEN")
    return told


def _metadata(session: str) -> aio.Metadata:
    return aio.Metadata(*metadata(session))
