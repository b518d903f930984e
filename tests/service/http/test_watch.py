"""What is counted of requests over HTTP and WebSockets, however they are answered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.service.http.running import Wire, request, running
from tests.service.http.scripted import Call, ScriptedCore, Socket, http_scope
from tidegate.api import GeneratedToken
from tidegate.errors import OverloadedError, PositionConflictError, TooLargeError
from tidegate.observability.requests import RequestMetrics

STEP = "/v1/sessions/s-1:step"
TEXT = {"text": "R"}


def counted(app: FastAPI) -> dict[tuple[str, str], dict[str, int]]:
    """Requests by interface and method, and by outcome, without zeros."""
    requests: RequestMetrics = app.state.requests
    found = {}
    for each in requests.snapshots():
        assert each.seconds.num_values == sum(each.outcomes.values())
        outcomes = {outcome: count for outcome, count in each.outcomes.items() if count}
        if outcomes:
            found[each.interface, each.method] = outcomes
    return found


@pytest.mark.parametrize(
    ("verb", "path", "body", "method"),
    [
        ("post", "/v1/sessions", {"model": "tiny"}, "Open"),
        ("get", "/v1/sessions", None, "List"),
        ("get", "/v1/sessions/s-1", None, "Get"),
        ("delete", "/v1/sessions/s-1", None, "Close"),
        ("post", STEP, TEXT, "Step"),
        ("post", "/v1/sessions/s-1:generate", {**TEXT, "max_tokens": 1}, "Generate"),
        ("post", "/v1/sessions/s-1:fork", {}, "Fork"),
        ("post", "/v1/sessions/s-1:checkpoint", {}, "Checkpoint"),
        ("post", "/v1/sessions/s-1:rewind", {"checkpoint": "c-1"}, "Rewind"),
        ("post", "/v1/sessions/s-1:upgrade", {}, "Upgrade"),
        ("get", "/v1/sessions/s-1/snapshot", None, "Snapshot"),
        ("post", "/v1/models/tiny:predict", {"sequences": [TEXT]}, "Predict"),
        ("post", "/v1/models/tiny:generate", {**TEXT, "max_tokens": 1}, "Generate"),
        ("get", "/v1/models", None, "ListModels"),
        ("get", "/v1/models/tiny", None, "GetModel"),
        ("post", "/v1/models:reload", None, "ReloadModels"),
    ],
)
async def test_each_route_is_a_method(
    client: httpx.AsyncClient, app: FastAPI, verb: str, path: str, body: object, method: str
) -> None:
    reply = await client.request(verb, path, json=body)
    assert reply.is_success, reply.text
    assert counted(app) == {("http", method): {"ok": 1}}


async def test_health_and_documents_are_not_counted(client: httpx.AsyncClient, app: FastAPI) -> None:
    for path in ("/livez", "/readyz", "/docs", "/openapi.json", "/"):
        await client.get(path)
    assert counted(app) == {}


async def test_what_is_nowhere_is_unknown_and_makes_no_labels(client: httpx.AsyncClient, app: FastAPI) -> None:
    for path in ("/nothing", "/v1/nothing", "/v1/sessions/s-1:jump"):
        assert (await client.get(path)).status_code in {404, 405}
    assert (
        sum(counted(app)["http", "unknown"].values())
        + sum(sum(outcomes.values()) for (_, method), outcomes in counted(app).items() if method != "unknown")
        == 3
    )
    assert all("jump" not in method for _, method in counted(app))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (PositionConflictError("conflict", position=4), "aborted"),
        (OverloadedError("full"), "resource_exhausted"),
        (TooLargeError("a reply of a gigabyte"), "too_large"),
        (ZeroDivisionError("ours"), "internal"),
    ],
)
@pytest.mark.parametrize("path", [STEP, "/v1/models/tiny:predict"])
async def test_an_error_s_outcome_is_its_code(
    client: httpx.AsyncClient, app: FastAPI, service: ScriptedCore, path: str, error: Exception, outcome: str
) -> None:
    service.error = error
    await client.post(path, json=TEXT if path == STEP else {"sequences": [TEXT]})
    assert list(counted(app).values()) == [{outcome: 1}]


async def test_malformed_requests_are_counted(client: httpx.AsyncClient, app: FastAPI) -> None:
    await client.post("/v1/sessions", json={"model": "tiny", "what": 1})
    assert counted(app) == {("http", "Open"): {"invalid_argument": 1}}


async def test_a_stream_of_events_ends_as_its_generation(
    client: httpx.AsyncClient, app: FastAPI, service: ScriptedCore
) -> None:
    body, accept = {**TEXT, "max_tokens": 1}, {"accept": "text/event-stream"}
    await client.post("/v1/models/tiny:generate", json=body, headers=accept)
    service.events = [GeneratedToken(5, "R", 4), OverloadedError("full")]
    await client.post("/v1/models/tiny:generate", json=body, headers=accept)
    service.events = [OverloadedError("full")]
    await client.post("/v1/models/tiny:generate", json=body, headers=accept)
    assert counted(app) == {("http", "Generate"): {"ok": 1, "resource_exhausted": 2}}


@pytest.mark.parametrize("accept", [[], [(b"accept", b"text/event-stream")]])
async def test_a_client_that_leaves_is_cancelled(
    app: FastAPI, service: ScriptedCore, accept: list[tuple[bytes, bytes]]
) -> None:
    service.is_holding = True
    call = Call(app, "/v1/models/tiny:generate", {**TEXT, "max_tokens": 1}, headers=accept)
    await service.has_asked.wait()
    call.hang_up()
    await asyncio.wait([call.task])
    assert counted(app) == {("http", "Generate"): {"cancelled": 1}}


@pytest.mark.parametrize("num_sent", [0, 1, 2])
async def test_a_client_that_is_found_gone_by_sending_is_cancelled(
    app: FastAPI, caplog: pytest.LogCaptureFixture, num_sent: int
) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        if len(sent) == num_sent:
            raise OSError("the connection is lost")
        sent.append(message)

    body = json.dumps({**TEXT, "max_tokens": 1}).encode()
    scope = http_scope("/v1/models/tiny:generate", [(b"accept", b"text/event-stream")])
    receive = asyncio.Queue[Any]()
    receive.put_nowait({"type": "http.request", "body": body})
    await app(scope, receive.get, send)
    assert counted(app) == {("http", "Generate"): {"cancelled": 1}}
    assert not caplog.records


async def test_steps_are_counted(app: FastAPI, service: ScriptedCore) -> None:
    async with running(app) as server, Wire(server) as wire:
        for body in (b'{"text": "R"}', b"{", b'{"text": "R"}'):
            wire.send(request(STEP, body))
            await wire.reply()
        service.error = PositionConflictError("conflict", position=4)
        wire.send(request(STEP, b'{"text": "R"}'))
        await wire.reply()
    assert counted(app) == {("http", "Step"): {"ok": 2, "invalid_argument": 1, "aborted": 1}}


async def test_each_frame_is_a_request(app: FastAPI, service: ScriptedCore) -> None:
    async with Socket(app, "/v1/sessions/s-1/stream") as socket:
        for frame in (json.dumps(TEXT), "{", json.dumps(TEXT)):
            socket.send_raw(text=frame)
            await socket.receive()
        service.is_holding = True
        service.has_asked.clear()
        socket.send(TEXT)
        await service.has_asked.wait()
    assert counted(app) == {("websocket", "Step"): {"ok": 2, "invalid_argument": 1, "cancelled": 1}}
