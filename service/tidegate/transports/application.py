"""All protocols as one ASGI application: a request's path and content type say which answers it."""

from __future__ import annotations

from tidegate.config import Settings
from tidegate.transports.asgi import Application, Receive, Scope, Send
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.heads import bounded_heads
from tidegate.transports.http.step import session_of_step
from tidegate.transports.proxies import behind_proxies


def one_application(grpc: GrpcAdapter, steps: Application, http: Application, settings: Settings) -> Application:
    """Return the application of gRPC's methods, of HTTP's steps, and of all else over HTTP and WebSockets."""

    async def over_http(scope: Scope, receive: Receive, send: Send) -> None:
        is_step = scope["type"] == "http" and session_of_step(scope) is not None
        await (steps if is_step else http)(scope, receive, send)

    bounded = bounded_heads(over_http, settings.max_head_kb << 10, settings.max_url_kb << 10)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        is_grpc = scope["type"] == "http" and grpc.speaks(scope)
        await (grpc if is_grpc else bounded)(scope, receive, send)

    return behind_proxies(application, settings)
