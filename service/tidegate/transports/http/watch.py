"""Counts what goes by routes, and answers where they break: as ASGI middleware, which learns from the scope what was
asked for and how it ended.

Steps and WebSockets' frames are counted where they are answered.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.faults import conceal
from tidegate.observability.requests import CANCELLED, INTERNAL, OK, RequestMetrics, outcome_of
from tidegate.transports.http.errors import problem
from tidegate.transports.http.exchange import OUTCOME

METHODS = {
    "open_session": "Open",
    "list_sessions": "List",
    "get_session": "Get",
    "close_session": "Close",
    "generate": "Generate",
    "fork": "Fork",
    "checkpoint": "Checkpoint",
    "rewind": "Rewind",
    "upgrade": "Upgrade",
    "snapshot": "Snapshot",
    "restore": "Restore",
    "predict": "Predict",
    "list_models": "ListModels",
    "get_model": "GetModel",
    "reload": "ReloadModels",
}
"""By the endpoint's name, what the method is called over gRPC. Health, metrics and documents are not counted."""

OIP_METHODS = {
    "infer": "ModelInfer",
    "server": "ServerMetadata",
    "model": "ModelMetadata",
    "config": "ModelConfig",
    "statistics": "ModelStatistics",
    "index": "RepositoryIndex",
    "load": "RepositoryModelLoad",
    "unload": "RepositoryModelUnload",
    "nothing": "unknown",
}

_OUTCOMES = {404: "not_found", 405: "unimplemented"}


class Watch:
    """The application behind it, watched."""

    def __init__(self, app: ASGIApp, requests: RequestMetrics) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, has_left = self._requests.begin(scope["headers"]), 0, False

        async def note(message: Message) -> None:
            nonlocal status, has_left
            if message["type"] == "http.response.start":
                status = message["status"]
            try:
                await send(message)
            except OSError:  # ASGI's word for a client that has left
                has_left = True
                raise

        try:
            await self._app(scope, receive, note)
        except asyncio.CancelledError:  # the client has left, or the server stops
            scope[OUTCOME] = CANCELLED
            raise
        except Exception as error:
            if has_left:
                scope[OUTCOME] = CANCELLED
                return
            told = conceal(error)
            scope[OUTCOME] = outcome_of(told)
            if status:  # the answer has begun: breaking the connection is all that tells the client
                raise
            await problem(told).response()(scope, receive, note)
        finally:
            interface, name = _asked(scope)
            if name is not None:
                session = scope.get("path_params", {}).get("session", "")
                self._requests.method(interface, name).end(begun, _outcome(scope, status), session)


def _asked(scope: Scope) -> tuple[str, str | None]:
    """Return the interface and the method, None where it is not counted."""
    endpoint: Any = scope.get("endpoint")
    if scope["path"].startswith("/v2"):
        return "oip_http", OIP_METHODS.get(getattr(endpoint, "__name__", ""))
    return "http", "unknown" if endpoint is None else METHODS.get(getattr(endpoint, "__name__", ""))


def _outcome(scope: Scope, status: int) -> str:
    told: str | None = scope.get(OUTCOME)
    if told is not None:
        return told
    if 0 < status < 400:
        return OK
    return _OUTCOMES.get(status, INTERNAL if status == 0 or status >= 500 else "invalid_argument")
