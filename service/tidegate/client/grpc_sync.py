"""Blocking gRPC. `grpc_async` has the same classes; all else of the blocking client is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import grpc

from tidegate.client.channel import KNOCK, ChannelPlan, Pairs
from tidegate.client.forks import FORKS, Origin
from tidegate.v1 import models_pb2_grpc, predictor_pb2, predictor_pb2_grpc, sessions_pb2_grpc

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Channel:
    """A channel with the stubs of its services. May be used by many threads."""

    def __init__(self, plan: ChannelPlan) -> None:
        self._origin = Origin()
        target, options = plan.endpoint.target, plan.options
        if plan.credentials is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, plan.credentials, options=options)
        FORKS.watch()
        self._knock = self._channel.unary_unary(KNOCK, bytes, bytes)
        self.models = models_pb2_grpc.ModelsStub(self._channel)
        self.predictor = predictor_pb2_grpc.PredictorStub(self._channel)
        self.sessions = sessions_pb2_grpc.SessionsStub(self._channel)

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request, seconds: float, metadata: Pairs
    ) -> Reply:
        self._origin.require_here()
        with FORKS.call():
            return method(request, timeout=seconds, metadata=metadata)

    def connect(self, seconds: float) -> None:
        """Wait for a connection, no longer than ``seconds``. Any answer will do, a refusal too."""
        with suppress(grpc.RpcError), FORKS.call():
            self._knock(b"", timeout=seconds, wait_for_ready=True)

    def open_events(
        self, method: grpc.UnaryStreamMultiCallable[Request, Reply], request: Request, seconds: float, metadata: Pairs
    ) -> Call[Reply]:
        """Start a call with one request and many replies."""
        self._origin.require_here()
        return Call(lambda _: method(request, timeout=seconds, metadata=metadata), self._origin)

    def open_stream(self, metadata: Pairs) -> Call[predictor_pb2.StreamReply]:
        """Start a `Predictor.Stream`."""
        self._origin.require_here()
        return Call(lambda requests: self.predictor.Stream(requests, metadata=metadata), self._origin)

    def close(self) -> None:
        if self._origin.is_here:
            with FORKS.call():
                self._channel.close()


class Call(Generic[Reply]):
    """A call under way with many replies, and many requests if it is a stream."""

    def __init__(self, start: Callable[[Iterator[predictor_pb2.StreamRequest]], Any], origin: Origin) -> None:
        self._origin = origin
        # gRPC takes the requests of a stream in a thread of its own; None ends it.
        self._requests: SimpleQueue[predictor_pb2.StreamRequest | None] = SimpleQueue()
        with FORKS.call():
            self._call = start(iter(self._requests.get, None))

    def write(self, request: predictor_pb2.StreamRequest) -> None:
        """Send, or, if the call has ended, leave it to `read` to say why."""
        self._origin.require_here()
        self._requests.put(request)

    def read(self) -> Reply | None:
        """Return the next reply; None after the last."""
        self._origin.require_here()
        with FORKS.call():
            return next(self._call, None)

    def cancel(self) -> None:
        if self._origin.is_here:
            self._requests.put(None)
            with FORKS.call():
                self._call.cancel()
