"""A channel to a server: calls with their errors rebuilt, the wait before another try, and the open stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc

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


class Connection:
    """The channel and its stubs. May be used by many threads."""

    def __init__(self, plan: ChannelPlan, timeout: float, retry: Retry, sleep: Callable[[float], Any]) -> None:
        self.plan = plan
        self.origin = Origin()
        target, options = plan.endpoint.target, plan.options
        if plan.credentials is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, plan.credentials, options=options)
        FORKS.watch()
        self._timeout = timeout
        self._sleep = sleep
        self.retry = retry
        # Whatever it is answered: when it is, there is a connection.
        self._knock = self._channel.unary_unary(KNOCK, bytes, bytes)
        self.models = models_pb2_grpc.ModelsStub(self._channel)
        self.predictor = predictor_pb2_grpc.PredictorStub(self._channel)
        self.sessions = sessions_pb2_grpc.SessionsStub(self._channel)

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        session: str = "",
        timeout: float | None = None,
    ) -> Reply:
        """Call once; ``timeout`` in seconds, None is the client's."""
        self.origin.require_here()
        metadata = self.plan.metadata(session)
        try:
            with FORKS.call():
                return method(request, timeout=timeout or self._timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise why_ended(error, self.plan.endpoint) from error
        except MISFITS:
            raise misfit(session=session, timeout=timeout) from None

    def call_repeatedly(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        session: str,
        timeout: float | None = None,
    ) -> Reply:
        """Call, and call again while the server is away; only for what may be applied twice without harm."""
        tries = None
        while True:
            try:
                return self.call(method, request, session, timeout)
            except UnavailableError as error:
                tries = tries or self.retry.begin()
                if not self.wait(tries, error):
                    raise

    def wait(self, tries: Tries, error: TidegateError) -> bool:
        """Wait before the next try, for the connection too where there is none; False where there shall be none."""
        pause = tries.next_pause(error)
        if pause is None:
            return False
        self._sleep(pause)
        with suppress(grpc.RpcError), FORKS.call():
            self._knock(b"", timeout=tries.patience, wait_for_ready=True)
        return True

    def events(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, types_pb2.GenerateReply],
        request: Request,
        session: str = "",
        timeout: float | None = None,
    ) -> Iterator[GeneratedToken | GenerationDone]:
        """A generation's events as they come. Closing the iterator cancels the generation."""
        self.origin.require_here()
        metadata = self.plan.metadata(session)
        try:
            with FORKS.call():
                call = method(request, timeout=timeout or self._timeout, metadata=metadata)
        except MISFITS:
            raise misfit(session=session, timeout=timeout) from None
        told, replies = None, iter(call)
        try:
            while True:
                with FORKS.call():
                    event = next(replies, None)
                if event is None:
                    return
                told = decode_event(event)
                yield told
                self.origin.require_here()
        except grpc.RpcError as error:
            if not isinstance(told, GenerationDone):  # else all is told, and only the end of the call was lost
                raise why_ended(error, self.plan.endpoint) from error
        finally:
            if self.origin.is_here:
                with FORKS.call():
                    call.cancel()  # type: ignore[no-untyped-call]

    def events_repeatedly(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, types_pb2.GenerateReply],
        request: Request,
        session: str,
        timeout: float | None = None,
    ) -> Iterator[GeneratedToken | GenerationDone]:
        """Events, asked for again while the server is away; what it then tells a second time is passed over.

        Only for a request that names a position and is on a session: that is what lets the server tell the same.
        """
        told, tries = -1, None
        while True:
            try:
                for event in self.events(method, request, session, timeout):
                    if isinstance(event, GenerationDone) or event.position > told:
                        told, tries = event.position, None
                        yield event
            except UnavailableError as error:
                tries = tries or self.retry.begin()
                if not self.wait(tries, error):
                    raise
            else:
                return

    def stream(self, session: str = "") -> OpenStream:
        return OpenStream(self, session)

    def close(self) -> None:
        if self.origin.is_here:
            with FORKS.call():
                self._channel.close()


class OpenStream:
    """One `Predictor.Stream`: requests go out, replies come in, in order."""

    def __init__(self, connection: Connection, session: str) -> None:
        self._origin, self._endpoint = connection.origin, connection.plan.endpoint
        self._origin.require_here()
        metadata = connection.plan.metadata(session)
        self._requests: SimpleQueue[predictor_pb2.StreamRequest | None] = SimpleQueue()
        # gRPC takes requests in a thread of its own; None ends it.
        with FORKS.call():
            self._call = connection.predictor.Stream(iter(self._requests.get, None), metadata=metadata)
        self._replies = iter(self._call)

    def send(self, request: predictor_pb2.StreamRequest) -> None:
        self._origin.require_here()
        self._requests.put(request)

    def receive(self) -> predictor_pb2.StreamReply:
        """The next reply; it may be an error, after which the stream goes on.

        Raises:
            TidegateError: The stream has ended.
        """
        self._origin.require_here()
        try:
            with FORKS.call():
                return next(self._replies)
        except StopIteration:
            raise UnavailableError("the server ended the stream") from None
        except grpc.RpcError as error:
            raise why_ended(error, self._endpoint) from error

    def close(self) -> None:
        """End the stream; what is in flight is cancelled."""
        if not self._origin.is_here:
            return
        self._requests.put(None)
        with FORKS.call():
            self._call.cancel()  # type: ignore[no-untyped-call]
