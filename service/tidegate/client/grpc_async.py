"""gRPC for asyncio. `grpc_sync` has the same classes; all else of the blocking client is generated."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

import grpc
from grpc import aio
from grpc.aio import EOF  # type: ignore[attr-defined]

from tidegate.client.channel import KNOCK, ChannelPlan, Pairs
from tidegate.client.forks import FORKS, Origin
from tidegate.v1 import models_pb2_grpc, predictor_pb2, predictor_pb2_grpc, sessions_pb2_grpc

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class AsyncChannel:
    """A channel with the stubs of its services; belongs to the event loop that it is made in."""

    def __init__(self, plan: ChannelPlan) -> None:
        self._origin = Origin()
        target, options = plan.endpoint.target, plan.options
        if plan.credentials is None:
            self._channel = aio.insecure_channel(target, options=options)
        else:
            self._channel = aio.secure_channel(target, plan.credentials, options=options)
        FORKS.watch()
        FORKS.open_async.add(self)
        self._knock = self._channel.unary_unary(KNOCK, bytes, bytes)
        self.models = models_pb2_grpc.ModelsStub(self._channel)
        self.predictor = predictor_pb2_grpc.PredictorStub(self._channel)
        self.sessions = sessions_pb2_grpc.SessionsStub(self._channel)

    async def call(
        self, method: aio.UnaryUnaryMultiCallable[Request, Reply], request: Request, seconds: float, metadata: Pairs
    ) -> Reply:
        self._origin.require_here()
        return await method(request, timeout=seconds, metadata=aio.Metadata(*metadata))

    async def connect(self, seconds: float) -> None:
        """Wait for a connection, no longer than ``seconds``. Any answer will do, a refusal too."""
        with suppress(grpc.RpcError):
            await self._knock(b"", timeout=seconds, wait_for_ready=True)

    def open_events(
        self, method: aio.UnaryStreamMultiCallable[Request, Reply], request: Request, seconds: float, metadata: Pairs
    ) -> AsyncCall[Reply]:
        """Start a call with one request and many replies."""
        self._origin.require_here()
        return AsyncCall(method(request, timeout=seconds, metadata=aio.Metadata(*metadata)), self._origin)

    def open_stream(self, metadata: Pairs) -> AsyncCall[predictor_pb2.StreamReply]:
        """Start a `Predictor.Stream`."""
        self._origin.require_here()
        # Without an iterator of requests the call is written to; the published stub does not know that form.
        stream: Any = self.predictor.Stream
        return AsyncCall(stream(metadata=aio.Metadata(*metadata)), self._origin)

    async def close(self) -> None:
        if self._origin.is_here:
            FORKS.open_async.discard(self)
            await self._channel.close(None)


class AsyncCall(Generic[Reply]):
    """A call under way with many replies, and many requests if it is a stream."""

    def __init__(self, call: Any, origin: Origin) -> None:
        self._call = call
        self._origin = origin

    async def write(self, request: predictor_pb2.StreamRequest) -> None:
        """Send, or, if the call has ended, leave it to `read` to say why."""
        self._origin.require_here()
        with suppress(asyncio.InvalidStateError, grpc.RpcError):
            await self._call.write(request)

    async def read(self) -> Reply | None:
        """Return the next reply; None after the last."""
        self._origin.require_here()
        reply = await self._call.read()
        return None if reply is EOF else cast("Reply", reply)

    def cancel(self) -> None:
        if self._origin.is_here:
            self._call.cancel()
