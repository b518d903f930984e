"""HTTP and WebSocket alone: `python -m bench.floors.http_echo asgi|starlette|fastapi`. No model, no session.

All three answer any POST with a body of a step's size, on uvicorn with the server's settings:
asgi       the least that can be: the body is read and dropped, the answer's bytes are ready
starlette  a Starlette route that parses the body and writes the answer as JSON
fastapi    the same as FastAPI has it, request and reply checked by pydantic models
WebSockets are answered by all of them: a frame for a frame, at once.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from bench.floors.replies import step_json
from bench.floors.running import run, say_ready

BODY = json.dumps(step_json(), separators=(",", ":")).encode()
STEP = "/v1/sessions/{session}:step"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Bare ASGI."""
    if scope["type"] == "websocket":
        await echo_frames(scope, receive, send)
        return
    while (await receive()).get("more_body", False):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def echo_frames(scope: Scope, receive: Receive, send: Send) -> None:
    """A WebSocket for its whole life."""
    await receive()
    await send({"type": "websocket.accept"})
    text = BODY.decode()
    while (await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": text})


class Frames:
    """`echo_frames` as an ASGI application; Starlette takes a function for an endpoint of its own kind."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await echo_frames(scope, receive, send)


def starlette() -> ASGIApp:
    async def step(request: Request) -> Response:
        await request.json()
        return JSONResponse(step_json())

    return Starlette(routes=[Route(STEP, step, methods=["POST"]), WebSocketRoute("/{rest:path}", Frames())])


class Step(BaseModel):
    """A step's body."""

    tokens: list[int]
    position: int | None = None


class Candidate(BaseModel):
    """A possible next token."""

    token: str
    id: int
    probability: float


class Surprise(BaseModel):
    """How unexpected the step was."""

    mean: float
    unit: str


class Prediction(BaseModel):
    """What comes next."""

    length: int
    next: list[Candidate]
    surprise: Surprise


class Reply(BaseModel):
    """A step's answer."""

    session: str
    position: int
    prediction: Prediction


def fastapi() -> ASGIApp:
    app = FastAPI()
    document: dict[str, Any] = step_json()

    @app.post(STEP)
    async def step(session: str, body: Step) -> Reply:
        return Reply.model_validate(document)

    app.router.routes.append(WebSocketRoute("/{rest:path}", Frames()))
    return app


APPS: dict[str, Callable[[], ASGIApp]] = {"asgi": lambda: echo, "starlette": starlette, "fastapi": fastapi}


async def main(name: str) -> None:
    config = uvicorn.Config(
        APPS[name](), http="httptools", ws="websockets-sansio", lifespan="off", access_log=False, log_config=None,
        server_header=False, timeout_keep_alive=75,
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        serving = asyncio.create_task(uvicorn.Server(config).serve([listener]))
        # The socket listens already: who connects before uvicorn accepts has to wait, not to fail.
        say_ready(listener.getsockname()[1])
        await serving


if __name__ == "__main__":
    run(main(sys.argv[1]))
