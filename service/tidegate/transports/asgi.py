"""ASGI (asgi.readthedocs.io): its types, and what stands around an application so that any server may run it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

CLIENT_SUBJECT: ContextVar[str | None] = ContextVar("tidegate_client_subject", default=None)
"""The subject (RFC 4514) of the certificate that the request's client showed, None where it showed none."""


class Guard:
    """The outermost application: no exception of what it runs reaches the server, and all of it can be ended.

    h2corn writes exceptions to standard error from Rust, where a full pipe stops the whole process.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._running: dict[asyncio.Task[Any], Scope] = {}
        self._cancelled: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or serve a WebSocket."""
        tls = scope.get("extensions", {}).get("tls")
        if tls is not None and tls["client_cert_name"]:
            CLIENT_SUBJECT.set(tls["client_cert_name"])
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment] # a server runs us in one
        self._running[task] = scope
        try:
            await self._application(scope, receive, send)
        except asyncio.CancelledError:
            if task not in self._cancelled and task.cancelling():
                raise  # the server's own: the client has left
            await _send_all(_UNAVAILABLE if scope["type"] == "http" else _GOING_AWAY, send)
        except OSError as error:
            # ASGI's way to say in `send` that the client has left.
            logger.debug("a client left before its answer", exc_info=error)
        except Exception:
            logger.exception("unexpected error in a request")
            await _send_all(_FAILURE if scope["type"] == "http" else _FAILED, send)
        finally:
            del self._running[task]
            self._cancelled.discard(task)

    @property
    def running(self) -> Mapping[asyncio.Task[Any], Scope]:
        """What is being answered, by the tasks that do it."""
        return self._running

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel what a task answers; a client that has had nothing of its answer is told that the server stops."""
        self._cancelled.add(task)
        task.cancel()


def _problem(status: int, title: str, detail: str, headers: list[tuple[bytes, bytes]]) -> list[Event]:
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()
    fields = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body)), *headers]
    return [
        {"type": "http.response.start", "status": status, "headers": fields},
        {"type": "http.response.body", "body": body},
    ]


_FAILURE = _problem(500, "Internal Server Error", "internal error: the server's log says more", [])
_UNAVAILABLE = _problem(503, "Service Unavailable", "the server is stopping", [(b"retry-after", b"1")])
_FAILED: list[Event] = [{"type": "websocket.close", "code": 1011}]
_GOING_AWAY: list[Event] = [{"type": "websocket.close", "code": 1001}]


async def _send_all(events: list[Event], send: Send) -> None:
    """Send these; where a response has begun the server refuses the first of them, and breaks the response off."""
    try:
        for event in events:
            await send(event)
    except Exception as error:
        logger.debug("a client left before its answer", exc_info=error)


def cancel_on_disconnect(application: Application) -> Application:
    """Return the application for a server that does not cancel a request's task when its client leaves, like uvicorn.

    A task reads the request in the application's place, one event ahead, and waits for ``http.disconnect``. WebSockets
    learn of it by themselves.
    """

    async def cancelling(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        events: asyncio.Queue[Event] = asyncio.Queue(1)
        answering = asyncio.current_task()

        async def read() -> None:
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    break
                await events.put(event)
            if answering is not None:
                answering.cancel()

        def send_last(event: Event) -> Awaitable[None]:
            if event["type"] == "http.response.body" and not event.get("more_body", False):
                reading.cancel()  # a server also says http.disconnect when it has the whole response
            return send(event)

        reading = asyncio.create_task(read())
        try:
            await application(scope, events.get, send_last)
        finally:
            reading.cancel()

    return cancelling
