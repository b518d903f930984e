"""Requests to an ASGI application without a server: what it reads is given, what it sends is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from tidegate.transports.asgi import Application, Event, Scope

Headers = Sequence[tuple[bytes, bytes]]


def http_scope(path: str, headers: Headers, **fields: Any) -> dict[str, Any]:
    """A POST over HTTP/2, by a client that takes trailers."""
    return {
        "type": "http",
        "http_version": "2",
        "method": "POST",
        "path": path,
        "headers": list(headers),
        "extensions": {"http.response.trailers": {}},
        "client": ("127.0.0.1", 50000),
        **fields,
    }


def body_of(chunks: Iterable[bytes]) -> list[Event]:
    """The events of a body that comes in these chunks and ends."""
    return [*({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks), {"type": "http.request"}]


class Exchange:
    """One request. After ``events`` it waits, as a server does while its client keeps quiet.

    Args:
        scope: The request's.
        events: What it reads.
        most_sent: Events that may be sent before `send` waits for ever, as for a client that does not read.
    """

    def __init__(self, scope: Scope, events: Iterable[Event] = (), most_sent: int = 1 << 30) -> None:
        self.scope = scope
        self.sent: list[Event] = []
        self.is_full = asyncio.Event()
        self._events = list(events)
        self._most_sent = most_sent

    async def run(self, application: Application) -> None:
        await application(self.scope, self.receive, self.send)

    @property
    def is_read(self) -> bool:
        """Whether all events were read."""
        return not self._events

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(event.get("body", b"") for event in self.sent if event["type"] == "http.response.body")

    @property
    def trailers(self) -> dict[bytes, bytes]:
        """The trailers, or the header fields where they are all there is."""
        last = self.sent[-1]
        return dict(last["headers"]) if last["type"] == "http.response.trailers" else self.headers

    async def receive(self) -> Event:
        if not self._events:
            await asyncio.Event().wait()
        return self._events.pop(0)

    async def send(self, event: Event) -> None:
        if len(self.sent) >= self._most_sent:
            self.is_full.set()
            await asyncio.Event().wait()
        self.sent.append(event)
