"""What stands around an application for servers that do not cancel requests."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.transports.asgi import Exchange, body_of, http_scope
from tidegate.transports.asgi import Event, Receive, Scope, Send, cancel_on_disconnect


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, is_more = b"", True
    while is_more:
        event = await receive()
        body += event.get("body", b"")
        is_more = event.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_a_request_is_read_and_answered_as_without() -> None:
    exchange = Exchange(http_scope("/", []), body_of([b"a", b"b", b"c"]))
    await exchange.run(cancel_on_disconnect(echo))
    assert exchange.body == b"abc"


async def test_a_client_that_leaves_cancels_what_does_not_read() -> None:
    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()
        await asyncio.Event().wait()

    exchange = Exchange(http_scope("/", []), [*body_of([b"a"]), {"type": "http.disconnect"}])
    with pytest.raises(asyncio.CancelledError):
        await exchange.run(cancel_on_disconnect(wait))


async def test_the_end_of_the_answer_is_no_leaving() -> None:
    """Servers say ``http.disconnect`` then, too."""
    answered = asyncio.Event()

    async def linger(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        answered.set()
        for _ in range(5):
            await asyncio.sleep(0)  # whoever would cancel this has the time to do it

    exchange = Exchange(http_scope("/", []), body_of([b"a"]))

    async def receive() -> Event:
        if not exchange.is_read:
            return await exchange.receive()
        await answered.wait()
        return {"type": "http.disconnect"}

    await cancel_on_disconnect(linger)(exchange.scope, receive, exchange.send)
    assert exchange.body == b"a"
