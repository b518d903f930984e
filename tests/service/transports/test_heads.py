"""Heads of requests are bounded, and who is over a bound is told which."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.service.transports.asgi import Exchange, http_scope
from tidegate.transports.asgi import Application, Event, Receive, Scope, Send
from tidegate.transports.grpc.metadata import size_of
from tidegate.transports.heads import bounded_heads

LIMIT, MAX_URL = 64 << 10, 8 << 10


async def answer(scope: Scope, _: Receive, send: Send) -> None:
    kind = "http" if scope["type"] == "http" else "websocket.http"
    await send({"type": f"{kind}.response.start", "status": 200, "headers": []})
    await send({"type": f"{kind}.response.body", "body": b""})


def scope_of(path: str = "/", query: bytes = b"", **fields: Any) -> dict[str, Any]:
    return http_scope(path, fields.pop("headers", []), query_string=query, **fields)


async def told(scope: dict[str, Any], application: Application | None = None) -> tuple[int, str]:
    exchange = Exchange(scope)
    await exchange.run(application or bounded_heads(answer, LIMIT, MAX_URL))
    return exchange.status, json.loads(exchange.body)["reason"] if exchange.body else ""


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("num_fields", [1, 100])
async def test_fields_count_as_in_http_2(num_fields: int, extra: int) -> None:
    room = LIMIT - len("/") - 33 * num_fields + extra
    headers = [(b"x", b"y" * (room // num_fields))] * (num_fields - 1)
    headers.append((b"x", b"y" * (room - sum(len(value) for _, value in headers))))
    assert size_of(headers) == LIMIT - 1 + extra
    assert await told(scope_of(headers=headers)) == ((431, "HEADERS_TOO_LARGE") if extra else (200, ""))


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/" * MAX_URL, b"", 200),
        ("/" * (MAX_URL + 1), b"", 414),
        ("/", b"q" * (MAX_URL - 1), 200),
        ("/", b"q" * MAX_URL, 414),
    ],
)
async def test_a_url_is_bounded_by_itself(path: str, query: bytes, status: int) -> None:
    assert (await told(scope_of(path, query)))[0] == status


async def test_a_refusal_says_what_is_allowed() -> None:
    exchange = Exchange(scope_of(headers=[(b"x", b"y" * LIMIT)]))
    await exchange.run(bounded_heads(answer, LIMIT, MAX_URL))
    assert "at most 65536 are allowed" in json.loads(exchange.body)["detail"]
    assert exchange.headers[b"content-type"] == b"application/problem+json"


async def test_a_websocket_is_refused_in_place_of_its_handshake() -> None:
    sent: list[Event] = []

    async def send(event: Event) -> None:
        sent.append(event)

    scope = scope_of(headers=[(b"x", b"y" * LIMIT)], type="websocket", extensions={"websocket.http.response": {}})
    await bounded_heads(answer, LIMIT, MAX_URL)(scope, Exchange(scope).receive, send)
    assert [event["type"] for event in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 431
    sent.clear()
    await bounded_heads(answer, LIMIT, MAX_URL)({**scope, "extensions": {}}, Exchange(scope).receive, send)
    assert [event["type"] for event in sent] == ["websocket.close"]
