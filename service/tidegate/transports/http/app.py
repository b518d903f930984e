"""The application: routes, errors, health, metrics and the document, put together around a service.

``server.py`` starts and stops it. On drain it awaits ``app.state.streams.drain()``, which ends the WebSocket streams;
every other request ends by itself.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Protocol

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.api import Core
from tidegate.errors import InvalidInputError
from tidegate.observability.families import Snapshot
from tidegate.observability.metrics import MetricsCollector
from tidegate.observability.requests import RequestMetrics
from tidegate.transports.http import branching, documents, errors, models, schemas, sessions
from tidegate.transports.http.documents import problems
from tidegate.transports.http.exchange import RawRoute, json_reply, link, service_of
from tidegate.transports.http.step import Steps
from tidegate.transports.http.stream import Streams
from tidegate.transports.http.watch import Watch

STREAM_PATHS = ("/v1/stream", "/v1/sessions/{session:name}/stream")
"""Where WebSockets are, which no route sees; whoever asks for them by plain HTTP is told so."""

health = APIRouter(tags=["health"], route_class=RawRoute)


class MetricsLike(Protocol):
    """Who knows the server's metrics."""

    async def all(self) -> Snapshot: ...


def create_app(service: Core, requests: RequestMetrics | None = None, figures: MetricsLike | None = None) -> FastAPI:
    """The HTTP interface of ``service``; it neither starts nor stops it.

    Args:
        service: The core's face.
        requests: Where requests are counted; None: nowhere else than in this application's own figures.
        figures: What ``/metrics`` tells; None: the figures of this process.
    """
    requests = requests or RequestMetrics(service.clock)
    app = documents.DocumentedApi()
    app.state.service = service
    app.state.requests = requests
    app.state.figures = figures or MetricsCollector(service, requests)
    app.state.streams = Streams(service, requests)
    app.state.steps = Steps(service, requests)
    app.add_middleware(Watch, requests=requests)
    app.add_middleware(HeadByGet)
    errors.install(app)
    for router in (sessions.raw, sessions.router, branching.raw, branching.router, models.raw, models.router, health):
        app.include_router(router)
    app.add_route("/", _to_docs, include_in_schema=False)
    for path in STREAM_PATHS:
        app.add_route(path, _to_websocket, include_in_schema=False)
    return app


class HeadByGet:
    """The application behind it, which knows no HEAD: where there is a GET, that answers, and its body is left out.

    Balancers and monitors probe with HEAD, which RFC 9110, 9.1 asks for wherever there is GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


async def _to_websocket(_: Request) -> Response:
    # Not by 426, which h2corn 2.0.0 cannot send over HTTP/2: the client would wait for ever.
    raise InvalidInputError("a WebSocket is here: connect by ws:// or wss://", reason="WEBSOCKET_ONLY")


async def _to_docs(request: Request) -> Response:
    return RedirectResponse(link(request, "/docs"))


@health.get("/livez", responses={200: documents.reply(schemas.Health, "The process answers."), **problems()})
async def livez(_: Request) -> Response:
    """Whether the process is alive."""
    return json_reply({"status": "alive"})


@health.get(
    "/readyz",
    responses={
        200: documents.reply(schemas.Health, "Ready."),
        503: documents.reply(schemas.Health, "Loading or draining, or the store of durable sessions is away."),
        **problems(),
    },
)
async def readyz(request: Request) -> Response:
    """Whether requests are welcome: the models are loaded and the server does not drain."""
    service = service_of(request)
    if service.is_ready:
        return json_reply({"status": "ready"})
    status = "draining" if service.is_draining else "store away" if service.is_store_away else "loading"
    return json_reply({"status": status}, HTTPStatus.SERVICE_UNAVAILABLE)


@health.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: documents.text("Prometheus' text format.", documents.METRICS), **problems()},
)
async def metrics(request: Request) -> Response:
    """MetricsCollector of the whole server, for Prometheus."""
    figures: MetricsLike = request.app.state.figures
    text, content_type = await asyncio.to_thread(_rendered, await figures.all())
    return Response(text, media_type=content_type)


def _rendered(snapshot: Snapshot) -> tuple[bytes, str]:
    """The text and its content type. A server starts without what the first reader of metrics needs."""
    from tidegate.observability.exposition import CONTENT_TYPE, render

    return render(snapshot), CONTENT_TYPE
