"""One application: what answers a request, also where a proxy shows the server below a path."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from tests.service.transports.asgi import Exchange, Headers, http_scope
from tests.service.transports.interop import SERVICE, Interop, handlers
from tidegate.config import load_settings
from tidegate.transports.application import one_application
from tidegate.transports.asgi import Application, Receive, Scope, Send
from tidegate.transports.grpc.adapter import GrpcAdapter

GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
STEP = "/v1/sessions/s-1:step"


def named(name: str) -> Application:
    async def answer(scope: Scope, _: Receive, send: Send) -> None:
        assert scope["type"] in {"http", "websocket"}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"name", name.encode())]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    return answer


def stepping(session: str, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    assert session == "s-1"
    return named("steps")(scope, receive, send)


async def answered(path: str, headers: Headers = (), settings: dict[str, Any] | None = None, **scope: Any) -> Exchange:
    adapter = GrpcAdapter(max_metadata=64 << 10)
    adapter.add_registered_method_handlers(SERVICE, handlers(Interop()))
    application = one_application(adapter, stepping, named("http"), load_settings(settings or {}))
    exchange = Exchange(http_scope(path, headers, query_string=b"", **scope), [{"type": "http.request"}])
    await exchange.run(application)
    return exchange


@pytest.mark.parametrize("settings", [{}, {"root_path": "/models"}])
@pytest.mark.parametrize("prefix", ["", "/models"])
@pytest.mark.parametrize(
    ("path", "scope", "name"),
    [
        (STEP, {}, b"steps"),
        (STEP, {"method": "GET"}, b"http"),
        (STEP, {"type": "websocket"}, b"http"),
        ("/v1/sessions", {}, b"http"),
        ("/livez", {"method": "GET"}, b"http"),
    ],
)
async def test_who_answers_does_not_depend_on_a_prefix(
    path: str, scope: dict[str, Any], name: bytes, prefix: str, settings: dict[str, Any]
) -> None:
    exchange = await answered(prefix + path, settings=settings, **scope)
    if settings or not prefix:
        assert (exchange.headers[b"name"], exchange.body.decode()) == (name, path)
    else:
        assert exchange.headers[b"name"] == b"http"


@pytest.mark.parametrize("prefix", ["", "/models"])
async def test_grpc_is_found_below_a_path_and_without_it(prefix: str) -> None:
    exchange = await answered(f"{prefix}/{SERVICE}/Empty", GRPC, {"root_path": "/models"})
    assert exchange.headers[b"content-type"] == b"application/grpc"
    assert exchange.trailers[b"grpc-status"] == b"3", "it has no message, which its method finds out"


@pytest.mark.parametrize("size", [60_000, 70_000])
async def test_a_head_is_bounded_alike_and_refused_in_the_words_of_its_protocol(size: int) -> None:
    field = (b"x", b"y" * size)
    http, steps = await answered("/livez", [field]), await answered(STEP, [field])
    assert http.status == steps.status == (200 if size < 64 << 10 else 431)
    grpc = await answered(f"/{SERVICE}/Empty", [*GRPC, field])
    assert (grpc.status, grpc.trailers[b"grpc-status"]) == (200, b"3" if size < 64 << 10 else b"8")
