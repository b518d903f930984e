"""All protocols as one ASGI application: a request's path and content type say which answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tidegate.config import Settings
from tidegate.transports.asgi import Application, Receive, Scope, Send
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.heads import bounded_heads
from tidegate.transports.http.step import session_of_step
from tidegate.transports.proxies import behind_proxies

StepApplication = Callable[[str, Scope, Receive, Send], Awaitable[None]]
"""An ASGI application that is told the session as well."""


def one_application(grpc: GrpcAdapter, step: StepApplication, http: Application, settings: Settings) -> Application:
    """Return the application of gRPC's methods, of HTTP's steps, and of all else over HTTP and WebSockets."""

    # What passes a request on returns what is to be awaited: a coroutine for each layer would cost a step's time.
    def over_http(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        session = session_of_step(scope) if scope["type"] == "http" else None
        return http(scope, receive, send) if session is None else step(session, scope, receive, send)

    bounded = bounded_heads(over_http, settings.max_head_kb << 10, settings.max_url_kb << 10)

    def application(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        is_grpc = scope["type"] == "http" and grpc.speaks(scope)
        return (grpc if is_grpc else bounded)(scope, receive, send)

    return behind_proxies(application, settings)
