"""Heads of HTTP requests, bounded: the URL, and all of the head as HTTP/2 counts it.

Servers have bounds of their own, which protect them and answer in few words; these are lower and say what is allowed.
"""

from __future__ import annotations

from collections.abc import Awaitable

from tidegate.errors import TooLargeError
from tidegate.transports.asgi import Application, Receive, Scope, Send
from tidegate.transports.grpc.metadata import size_of
from tidegate.transports.http.errors import PROBLEM, problem


def bounded_heads(application: Application, max_head: int, max_url: int) -> Application:
    """Return the application, asked only by requests whose heads, and URLs, have at most so many bytes.

    Others get 414 or 431, WebSockets in place of their handshake. gRPC has an answer of its own (`GrpcAdapter`).
    """

    def bounded(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        url = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        size = url + size_of(scope["headers"])
        if size <= max_head and url <= max_url:
            return application(scope, receive, send)
        if url > max_url:
            text = f"the URL has {url} bytes: at most {max_url} are allowed"
            return _refuse(TooLargeError(text, reason="URL_TOO_LONG"), scope, send)
        text = f"the request's head has {size} bytes, counted as in HTTP/2: at most {max_head} are allowed"
        return _refuse(TooLargeError(text, reason="HEADERS_TOO_LARGE"), scope, send)

    return bounded


async def _refuse(error: TooLargeError, scope: Scope, send: Send) -> None:
    answer = problem(error)
    headers = [(b"content-type", PROBLEM.encode()), (b"content-length", b"%d" % len(answer.body))]
    kind = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope["extensions"]:
            await send({"type": "websocket.close"})  # which servers tell by 403
            return
        kind = "websocket.http"
    await send({"type": f"{kind}.response.start", "status": answer.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": answer.body})
