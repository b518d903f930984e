"""gRPC and gRPC-Web over ASGI: looks up the method of a request, runs its servicer, and ends the call.

It stands where generated code wants a server: ``add_XServicer_to_server(servicer, adapter)``. Servicers are those that
grpc.aio runs: coroutines and asynchronous generators, in the task of their request; synchronous ones run in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from grpc import aio

from tidegate.clock import Clock
from tidegate.errors import (
    InternalError,
    InvalidInputError,
    NotSupportedError,
    TidegateError,
    TooLargeError,
    UnavailableError,
    did_you_mean,
)
from tidegate.transports.asgi import Receive, Scope, Send
from tidegate.transports.grpc.blocking import is_async, run_in_threads
from tidegate.transports.grpc.call import EOF, Call, Wire
from tidegate.transports.grpc.metadata import Metadatum, size_of
from tidegate.wire.errors import encode_status

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Continuation: TypeAlias = "Callable[[Any], Awaitable[Handler | None]]"

_WIRES = {
    name.encode(): Wire(name)
    for base in ("application/grpc", "application/grpc-web", "application/grpc-web-text")
    for name in (base, f"{base}+proto")
}

PROBES = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})
_PROBE_BYTES = 4096
"""Of a probe's request: their services parse messages whole, whatever these hold, and nobody sends them long ones."""


_LAST_SECONDS = 0.25
_STOPPING = encode_status(UnavailableError("the server is stopping", reason="STOPPING", retry_after=1))


class CallDetails(grpc.HandlerCallDetails):
    """What a handler is looked up by: the method's path, and the call's metadata."""

    def __init__(self, method: str, invocation_metadata: tuple[Metadatum, ...]) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


class Method:
    """A handler, and the way it is run."""

    def __init__(self, handler: Handler) -> None:
        self.deserialize: Callable[[bytes], Any] | None = handler.request_deserializer
        self.serialize: Callable[[Any], bytes] | None = handler.response_serializer
        streams = handler.request_streaming, handler.response_streaming
        behavior: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        if not is_async(behavior):
            behavior = run_in_threads(behavior, *streams)
        self.run: Callable[[Call], Awaitable[None]] = _way(behavior, *streams)


def _way(behavior: Any, is_request_streamed: bool, is_response_streamed: bool) -> Callable[[Call], Awaitable[None]]:
    async def answer(call: Call) -> None:
        # Who sends more messages than one is not found out: that would be another wait for every call.
        request = call.requests() if is_request_streamed else await call.read()
        if request is EOF:
            raise InvalidInputError("the call has no message", reason="BAD_MESSAGE")
        await call.reply(await behavior(request, call))

    async def answer_all(call: Call) -> None:
        request = call.requests() if is_request_streamed else await call.read()
        if request is EOF:
            raise InvalidInputError("the call has no message", reason="BAD_MESSAGE")
        replies = behavior(request, call)
        if not hasattr(replies, "__aiter__"):
            await replies  # a coroutine, which writes its replies itself
            return
        async with aclosing(replies):
            async for reply in replies:
                await call.write(reply)

    return answer_all if is_response_streamed else answer


class GrpcAdapter:
    """An ASGI application that answers gRPC and gRPC-Web, binary and text.

    Args:
        max_message: Bytes of a message at most, either way, as sent and as unpacked.
        max_metadata: Bytes of a request's header fields at most, as HTTP/2 counts them.
        interceptors: grpc.aio's, asked in order for the handler of each call.
        on_refused: Told of each call that ends with an error before its servicer is asked, or because a message is
            malformed or too large: its path, empty where there is no such method, and the error.
        probes: Services whose calls may last for ever, and are not waited for when the server drains.
        clock: The server's; for what is left of deadlines.
    """

    def __init__(
        self,
        *,
        max_message: int = 4 << 20,
        max_metadata: int = 64 << 10,
        interceptors: Sequence[aio.ServerInterceptor[Any, Any]] = (),
        on_refused: Callable[[str, TidegateError], None] = lambda _path, _error: None,
        probes: Iterable[str] = PROBES,
        clock: Clock | None = None,
    ) -> None:
        self._max_message = max_message
        self._max_metadata = max_metadata
        self._on_refused = on_refused
        self._probes = tuple(f"/{service}/" for service in probes)
        self._clock = (clock or Clock()).monotonic
        self._handlers: dict[str, Handler] = {}
        self._methods: dict[str, Method] = {}
        self._generic: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._continuation: _Continuation | None = None
        if interceptors:
            self._continuation = self._find_handler
            for interceptor in reversed(interceptors):
                self._continuation = functools.partial(interceptor.intercept_service, self._continuation)
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()

    # What generated code and the likes of it ask of a server.

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        for name, handler in method_handlers.items():
            path = f"/{service_name}/{name}"
            self._handlers[path], self._methods[path] = handler, Method(handler)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Ask these for methods that are not registered."""
        self._generic += generic_rpc_handlers

    def speaks(self, scope: Scope) -> bool:
        """Whether a request is gRPC's: by its content type, or by its path, which then gets it a fitting refusal."""
        if scope["path"] in self._methods:
            return True
        for name, value in scope["headers"]:  # not by `any`, which makes a generator for each request
            if name == b"content-type":
                return bool(value.startswith(b"application/grpc"))
        return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        fields = dict(scope["headers"])  # of the transport's own fields none comes twice
        wire = _WIRES.get(fields.get(b"content-type", b"")) or _wire_of(fields)
        if wire is None or not _is_call(scope, wire):
            await _refuse_http(wire, scope, send)
            return
        call = Call(scope, receive, send, fields, wire, self._max_message, self._clock, self._on_refused)
        self._calls.add(call)
        try:
            try:
                self._check(call)
                method = self._methods.get(call.path) if self._continuation is None else None
                if method is None:
                    method = await self._find(call)
                call.begin(method.deserialize, method.serialize, self._limit_of(call.path))
                await method.run(call)
            except aio.AbortError:
                pass  # its status is set
            except asyncio.CancelledError:
                if not call.is_interrupted:
                    await self._abandon(call)
                    raise
                call.task.uncancel()
            except TidegateError as error:
                self._fail(call, error)
            except Exception:
                logger.exception("unexpected error in a gRPC call")
                call.fail(encode_status(InternalError("internal error: the server's log says more")))
            if not call.is_finished:
                await call.finish()
        finally:
            self._calls.discard(call)
            call.close()
            self._idle.set()

    def is_probe(self, scope: Scope) -> bool:
        """Whether a request asks for health or reflection, perhaps for ever."""
        return scope["path"].startswith(self._probes)  # type: ignore[no-any-return]

    def _limit_of(self, path: str) -> int:
        return min(self._max_message, _PROBE_BYTES) if path.startswith(self._probes) else self._max_message

    async def wait_idle(self) -> None:
        """Return when no call runs but probes. New calls are the servicers' to refuse."""
        while not all(call.path.startswith(self._probes) for call in self._calls):
            self._idle.clear()
            await self._idle.wait()

    async def _abandon(self, call: Call) -> None:
        """End a call that was cancelled: its client has left and hears nothing, or the server stops and says so."""
        if call.is_cancelled or call.is_finished:
            return
        call.fail(_STOPPING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):  # it may be a client that does not read
                await call.finish()

    def _fail(self, call: Call, error: TidegateError) -> None:
        if not call.has_begun:
            self._on_refused(call.path if call.path in self._methods else "", error)
        call.fail(encode_status(error))

    def _check(self, call: Call) -> None:
        """Raise the error of a call that is refused, whatever its method."""
        if size_of(call.fields) > self._max_metadata:
            text = f"the call's metadata is over {self._max_metadata} bytes"
            raise TooLargeError(text, reason="HEADERS_TOO_LARGE")

    async def _find(self, call: Call) -> Method:
        """Return the method that interceptors and generic handlers have for the call."""
        details = CallDetails(call.path, call.invocation_metadata())
        handler = await (self._continuation or self._find_handler)(details)
        if handler is None:
            meant = did_you_mean(call.path, self._handlers)
            raise NotSupportedError(f"no method {call.path[:200]!r}{meant}", reason="UNKNOWN_METHOD")
        return self._methods[call.path] if handler is self._handlers.get(call.path) else Method(handler)

    async def _find_handler(self, details: CallDetails) -> Handler | None:
        if details.method in self._handlers:
            return self._handlers[details.method]
        return next((found for each in self._generic if (found := each.service(details)) is not None), None)


def _wire_of(fields: Mapping[bytes, bytes]) -> Wire | None:
    """Return how a client speaks by its content type, whose case and parameters do not matter."""
    return _WIRES.get(fields.get(b"content-type", b"").partition(b";")[0].strip().lower())


def _is_call(scope: Scope, wire: Wire) -> bool:
    return scope["method"] == "POST" and (wire.is_web or "http.response.trailers" in scope.get("extensions", {}))


async def _refuse_http(wire: Wire | None, scope: Scope, send: Send) -> None:
    """Answer what is no gRPC request, in HTTP's own words."""
    headers = [(b"content-type", b"application/problem+json")]
    if wire is None:
        status, title = 415, "Unsupported Media Type"
        detail = "gRPC takes application/grpc, application/grpc-web and application/grpc-web-text"
    elif scope["method"] != "POST":
        status, title, detail = 405, "Method Not Allowed", "gRPC calls are POST requests"
        headers.append((b"allow", b"POST"))
    else:
        status, title = 400, "Bad Request"
        detail = "gRPC needs HTTP/2 and the header field 'te: trailers'; without them speak gRPC-Web"
    problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(problem).encode()})
