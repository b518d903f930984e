"""The OpenAPI document: what each route says of itself, with an example for every body.

Knows descriptions and examples. Knows nothing of how a route works; the document is made when it is first asked for.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tidegate import __version__
from tidegate.transports.asgi import Receive, Scope, Send
from tidegate.transports.http import schemas
from tidegate.transports.http.errors import KINDS, PROBLEM, RETRIABLE
from tidegate.transports.http.exchange import JSON, link

Json = Any
Object = dict[str, Json]

REFERENCE = "#/components/schemas/{model}"
EVENT_STREAM = "text/event-stream"
TEXT = "text/plain"
OCTETS = "application/octet-stream"

DESCRIPTION = """
Recurrent sequence models behind HTTP, with their state.

A **session** is a running sequence: open one, then send its steps, one or many at a time. `position` counts the steps
consumed; send it along and a repeated request is answered again instead of applied twice.

`WebSocket /v1/sessions/{id}/stream` carries the steps of one session: each text frame is a body of `:step`, each
answer, in order, is its reply or a problem document, after which the stream goes on. `WebSocket /v1/stream` first takes
the body of `POST /v1/sessions`, and answers as that does. Binary frames are messages `StreamRequest` of `tidegate.v1`,
answered by `StreamReply`, or, with the subprotocol `tidegate.f32`, whole steps as 32-bit floats. Close codes: 4404
there is no such session, 4410 it ended, 4000 + the status for other errors at the start, 1001 the server drains.

Errors are problem documents (RFC 9457); branch on their `reason`.
"""

SESSION: Object = {
    "id": "reader-1",
    "model": "shakespeare-lstm",
    "version": "1",
    "position": 0,
    "durable": False,
    "created_at": "2026-01-31T12:00:00Z",
    "expires_at": "2026-02-01T12:00:00Z",
    "state_bytes": 4096,
    "checkpoints": ["before-the-storm"],
    "origin": "v1",
}

PREDICTION: Object = {
    "length": 6,
    "next": [{"token": "\n", "id": 10, "probability": 0.91}],
    "surprise": {"mean": 1.72, "unit": "bits"},
}

MODEL: Object = {
    "name": "shakespeare-lstm",
    "version": "1",
    "versions": ["1"],
    "task": "next_token",
    "cell": "lstm",
    "inputs": [{"name": "tokens", "dtype": "int64", "axes": ["batch", "time"]}],
    "outputs": [{"name": "logits", "dtype": "float32", "axes": ["batch", "time", "65"]}],
    "features": [],
    "state_bytes": 4096,
    "surprise_unit": "bits",
    "batch_invariant": True,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "provider": "CPUExecutionProvider",
    "settings": [],
    "sample_rate": None,
    "frame_length": None,
    "columns": [],
    "surprise": {"mean": 1.97, "steps": 412800},
    "drift": {
        "state": "normal",
        "ewma": 1.98,
        "blocks": 3225,
        "block": 128,
        "mean": 1.97,
        "spread": 0.28,
        "warning": [1.76, 2.18],
        "drift": [1.58, 2.36],
    },
}

EXAMPLES: dict[type[BaseModel], Object] = {
    schemas.OpenSession: {"model": "shakespeare-lstm", "id": "reader-1"},
    schemas.Session: SESSION,
    schemas.Fork: {"ids": ["reader-2", "reader-3"]},
    schemas.Forks: {"sessions": [{**SESSION, "id": name, "checkpoints": []} for name in ("reader-2", "reader-3")]},
    schemas.MakeCheckpoint: {"name": "before-the-storm"},
    schemas.Checkpoint: {"checkpoint": "before-the-storm", "position": 6},
    schemas.Rewind: {"checkpoint": "before-the-storm"},
    schemas.Upgrade: {"version": "2"},
    schemas.SessionList: {"sessions": [SESSION], "next_page_token": ""},
    schemas.Step: {"text": "ROMEO:", "position": 0, "top": 1},
    schemas.StepReply: {"session": "reader-1", "position": 6, "prediction": PREDICTION},
    schemas.Predict: {"sequences": [{"text": "ROMEO:"}, {"text": "JULIET"}], "top": 1, "every_step": False},
    schemas.PredictReply: {
        "model": "shakespeare-lstm",
        "version": "1",
        "predictions": [PREDICTION, {**PREDICTION, "next": [{"token": "\n", "id": 10, "probability": 0.84}]}],
    },
    schemas.Generate: {"text": "ROMEO:", "max_tokens": 3, "temperature": 0.8, "seed": 7},
    schemas.SessionGenerate: {"max_tokens": 3, "temperature": 0.8, "stop": ["\n\n"]},
    schemas.Generated: {"text": "\nO,", "tokens": [10, 41, 6], "finish_reason": "length", "position": 9},
    schemas.ModelList: {"models": [MODEL], "next_page_token": ""},
    schemas.Model: MODEL,
    schemas.ReloadReport: {
        "loaded": ["shakespeare-lstm/2"],
        "removed": [],
        "refused": [{"bundle": "load-lstm/1", "reason": "BAD_BUNDLE", "message": "model.onnx: checksum differs"}],
    },
    schemas.Health: {"status": "ready"},
    schemas.Problem: {
        "type": "urn:tidegate:problem:position-conflict",
        "title": "Position conflict",
        "status": 409,
        "detail": "the session is at position 6, not 0",
        "reason": "POSITION_CONFLICT",
        "position": 6,
    },
}

EVENTS = """event: token
data: {"id":10,"text":"\\n","position":7}

event: done
data: {"text":"\\n","tokens":[10],"finish_reason":"length","position":7}

"""

METRICS = "tidegate_sessions 3.0\n"


# A snapshot has no text; this stands for one.
SNAPSHOT = "(bytes of a snapshot)"


def reference(model: type[BaseModel]) -> Object:
    return {"$ref": REFERENCE.format(model=model.__name__)}


def body(model: type[BaseModel], *, is_required: bool = True) -> Object:
    """``openapi_extra`` of a route that reads its body itself."""
    return {"requestBody": {"required": is_required, "content": {"application/json": content(model)}}}


STRING: Object = {"type": "string"}
LOCATION: Object = {"Location": {"description": "The session's path.", "schema": STRING}}

# One of ``openapi_extra``'s parameters, for routes that read their headers themselves.
TIMEOUT: Object = {
    "name": "tidegate-timeout",
    "in": "header",
    "description": "Seconds this request may take; absent: the server's setting.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "example": 2.5,
}


def reply(model: type[BaseModel], description: str) -> Object:
    return {"description": description, "content": {"application/json": content(model)}}


def content(model: type[BaseModel]) -> Object:
    return {"schema": reference(model), "example": EXAMPLES[model]}


def generation() -> Object:
    """The reply of ``:generate``: one document, or events for a client that accepts them."""
    answer = reply(schemas.Generated, "The whole text; or its tokens as events, then `done` or `error`.")
    answer["content"][EVENT_STREAM] = {"schema": STRING, "example": EVENTS}
    return answer


def text(description: str, example: str) -> Object:
    return {"description": description, "content": {TEXT: {"schema": STRING, "example": example}}}


def octets(description: str) -> Object:
    """A body of bytes, request or reply."""
    binary = {"schema": {"type": "string", "format": "binary"}, "example": SNAPSHOT}
    return {"description": description, "content": {OCTETS: binary}}


def problems(*statuses: int) -> dict[int | str, Object]:
    """What ``statuses`` look like, and a default for all others: where there is one, FastAPI adds no 422."""
    return {**{status: _problem(status) for status in sorted(statuses)}, "default": _any_problem("Any other error.")}


def _problem(status: int) -> Object:
    kinds = [(error, kind) for error, kind in KINDS.items() if kind.status == status]
    titles = ", or ".join(kind.title.lower() for _, kind in kinds) or HTTPStatus(status).phrase
    described = _any_problem(titles.capitalize() + ".")
    if status in RETRIABLE:
        seconds = {"schema": {"type": "integer", "minimum": 1}, "example": 1}
        described["headers"] = {"Retry-After": {"description": "Seconds to wait.", **seconds}}
    return described


def _any_problem(description: str) -> Object:
    return {"description": description, "content": {PROBLEM: content(schemas.Problem)}}


class DocumentedApi(FastAPI):
    """FastAPI whose document also holds the schemas of the routes that read their bodies themselves."""

    def __init__(self) -> None:
        super().__init__(
            title="tidegate",
            version=__version__,
            description=DESCRIPTION,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            redoc_url=None,
            redirect_slashes=False,
        )

        # Before FastAPI's own, which would make the document in the event loop: 80 ms for who asks first.
        self.router.routes.insert(0, Route("/openapi.json", self._document, include_in_schema=False))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; WebSockets go by no router and no middleware, which would look at each of their frames."""
        if scope["type"] == "websocket":
            await self.state.streams(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _document(self, request: Request) -> Response:
        root_path = link(request, "")
        servers: Object = {"servers": [{"url": root_path}]} if root_path else {}
        return Response(await asyncio.to_thread(lambda: to_json(self.openapi() | servers)), media_type=JSON)

    def openapi(self) -> Object:
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components.update(schema_components())
            self.openapi_schema = document
        return self.openapi_schema


def schema_components() -> Object:
    """The schema of every document by its name."""
    _, definitions = models_json_schema([(model, "validation") for model in EXAMPLES], ref_template=REFERENCE)
    schemas_by_name: Object = definitions["$defs"]
    return schemas_by_name
