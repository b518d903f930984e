"""The other workers of this server, and the rule by which one of them serves a session.

All that a peer is asked goes over one gRPC channel to its Unix socket: calls, generations, sequences and metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import grpc
from grpc import aio
from grpc.aio import EOF  # type: ignore[attr-defined]

from tidegate.api import Events, GenerationDone
from tidegate.client.endpoint import parse_endpoint
from tidegate.client.retry import STREAM_BROKEN, call_error
from tidegate.client.tls import CONNECTION_CLOSED
from tidegate.clock import Clock
from tidegate.cluster.info import WorkerInfo
from tidegate.config import Settings
from tidegate.errors import DeadlineExceededError, NotFoundError, TidegateError, UnavailableError
from tidegate.observability.logs import REQUEST
from tidegate.oip import service_pb2_grpc
from tidegate.sessions.ids import DURABLE, EPHEMERAL
from tidegate.v1 import models_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from tidegate.wire.predictions import decode_event

Name = TypeVar("Name", bound=Hashable)


class KeyedLock(Generic[Name]):
    """Locks that are kept as long as somebody holds them or waits for them."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Name, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: Name) -> asyncio.Lock:
        """Return the key's lock; asyncio's locks are fair."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


Answer = TypeVar("Answer")

AWAY = "WORKER_AWAY"
"""The reason of an error that says that nobody answered: what was asked may have been done or not."""

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel would share the failed one's connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Peer:
    """Another worker of the same server. It passes nothing on: its own core answers.

    Args:
        target: Its Unix socket.
        timeout: Seconds for a call that has no deadline.
        clock: That of deadlines.
    """

    def __init__(self, target: str, timeout: float, clock: Clock) -> None:
        self._target = target
        self._timeout = timeout
        self._clock = clock
        self._is_closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self._connect()

    def _connect(self) -> None:
        self._channel = aio.insecure_channel(self._target, options=_OPTIONS)
        self.models = models_pb2_grpc.ModelsStub(self._channel)
        self.sessions = sessions_pb2_grpc.SessionsStub(self._channel)
        self.oip = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def method(self, path: str) -> Any:
        """Return a method that takes and gives bytes."""
        return self._channel.unary_unary(path, bytes, bytes)

    async def call(self, method: Any, request: Any, deadline: float | None = None, *, holds: str = "session") -> Any:
        """Call a method of one of the stubs once.

        Args:
            method: Of `models`, `sessions` or `oip`, or what `method` returned.
            request: Its message.
            deadline: By the clock; None: the server's time for a request.
            holds: What the peer is asked about, for the error that says that it is away.

        Raises:
            UnavailableError: With reason `AWAY` where nobody answered.
        """
        timeout, channel = self._timeout_of(deadline), self._channel
        try:
            return await method(request, timeout=timeout, metadata=_trace_headers())
        except grpc.RpcError as error:
            raise self._error_of(error, channel, holds) from error
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise

    async def generate(
        self, request: sessions_pb2.SessionGenerateRequest, deadline: float | None, *, is_streamed: bool
    ) -> Events:
        """Yield the events of a generation; the peer sends its tokens in any case."""
        timeout, channel = self._timeout_of(deadline), self._channel
        call: Any = self.sessions.Generate(request, timeout=timeout, metadata=_trace_headers())
        event = None
        try:
            while (reply := await call.read()) is not EOF:
                event = decode_event(reply)
                if is_streamed or isinstance(event, GenerationDone):
                    yield event
        except grpc.RpcError as error:
            if not isinstance(event, GenerationDone):  # else all is told, and only the end of the call was lost
                raise self._error_of(error, channel, "session") from error
        except asyncio.CancelledError:
            self._raise_if_closed()
            raise
        finally:
            call.cancel()

    async def close(self) -> None:
        self._is_closed = True
        await self._channel.close(None)
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _timeout_of(self, deadline: float | None) -> float:
        if self._is_closed:
            raise _stopping()
        if deadline is None:
            return self._timeout
        seconds = deadline - self._clock.monotonic()
        if seconds <= 0:
            raise DeadlineExceededError("the request's time ran out before it was passed on")
        return seconds

    def _error_of(self, error: grpc.RpcError, channel: aio.Channel, holds: str) -> TidegateError:
        """Return the peer's own error, or, if gRPC found nobody, that the peer is away."""
        decoded = call_error(error, parse_endpoint(self._target))
        if not isinstance(decoded, UnavailableError) or decoded.reason not in {
            UnavailableError.default_reason,
            STREAM_BROKEN,
            CONNECTION_CLOSED,
        }:
            return decoded
        if channel is self._channel and not self._is_closed:
            # A channel that has failed waits before it tries again; a new one finds the next worker at once.
            self._connect()
            closing = asyncio.create_task(channel.close(self._timeout), name="tidegate-peer-close")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        message = f"the worker that holds the {holds} is away: it is being started again"
        return UnavailableError(message, reason=AWAY, retry_after=1.0)

    def _raise_if_closed(self) -> None:
        """GRPC cancels a call whose channel is closed, though nobody cancelled the task that waits for it."""
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            raise _stopping()


class Peers:
    """All other workers, and the rule by which a session is served by one of them or here.

    A durable session lies in the store, which all workers share: one whose id the server made is served where it is
    asked for. An id that a client chose does not say what it is, so it has an owner like an ephemeral session; where
    that is away, this worker looks into the store in its place.
    """

    def __init__(self, worker: WorkerInfo, settings: Settings, clock: Clock) -> None:
        self.clock = clock
        self._worker = worker
        self._has_store = settings.store != "none"
        self._peers = {rank: Peer(worker.target(rank), settings.request_timeout, clock) for rank in worker.other_ranks}

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def get(self, rank: int) -> Peer | None:
        """Return the worker of that rank; None where it is this one."""
        return self._peers.get(rank)

    def owner(self, session: str) -> int:
        """Return the rank of the worker that serves the session."""
        return self._worker.rank if session.startswith(DURABLE) else self._worker.owner(session)

    def find_owner(self, session: str) -> Peer | None:
        """Return the peer that serves the session; None where this worker does."""
        return self._peers.get(self.owner(session))

    async def call_owner(
        self,
        session: str,
        method: str,
        request: Any,
        decode: Callable[[Any], Answer],
        call_here: Callable[[], Awaitable[Answer]],
        *,
        rank: int | None = None,
        is_repeatable: bool = True,
    ) -> Answer:
        """Call a method of `Sessions` where the session is served, or at the worker of that rank."""
        peer = self._peers.get(self.owner(session) if rank is None else rank)
        if peer is None:
            return await call_here()
        try:
            return decode(await peer.call(getattr(peer.sessions, method), request))
        except UnavailableError as error:
            return await self.stand_in(error, session, call_here, is_repeatable=is_repeatable)

    async def stand_in(
        self, error: UnavailableError, session: str, call_here: Callable[[], Awaitable[Answer]], *, is_repeatable: bool
    ) -> Answer:
        """Do here what a peer was asked that is away, or raise ``error`` where that may be wrong.

        ``is_repeatable`` says that it may be done twice without harm: the peer may have done it before it went.
        """
        may_be_stored = self._has_store and not session.startswith(EPHEMERAL)
        if error.reason != AWAY or not may_be_stored or not is_repeatable:
            raise error
        try:
            return await call_here()
        except NotFoundError as missing:
            # That it is not in the store does not say that the peer had it not.
            raise (error if missing.reason == "UNKNOWN_SESSION" else missing) from None

    async def close(self) -> None:
        await asyncio.gather(*(peer.close() for peer in self))


def _trace_headers() -> aio.Metadata:
    """Return what tells the peer of the trace that the request is in, if it is in one."""
    context = REQUEST.get()
    return aio.Metadata() if context is None or context.span is None else aio.Metadata(*context.span.headers())


def _stopping() -> UnavailableError:
    return UnavailableError("the server is stopping", reason="DRAINING", retry_after=1.0)
