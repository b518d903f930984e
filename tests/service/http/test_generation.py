"""``:generate`` as one document and as events, told as they come and cancelled with their client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from tests.service.http.scripted import DONE_JSON, EVENTS, Call, ScriptedCore
from tidegate.api import GeneratedToken, Input, Sampling
from tidegate.errors import NotFoundError, UnavailableError

Json = Any

MODEL, SESSION = "/v1/models/tiny:generate", "/v1/sessions/s-1:generate"
ACCEPT = {"accept": "text/event-stream"}
WISHES = {"max_tokens": 3, "temperature": 0.5, "top_k": 4, "top_p": 0.75, "seed": 2**64 - 1, "stop": ["\n", "x"]}
SAMPLING = Sampling(3, 0.5, 4, 0.75, 2**64 - 1, ("\n", "x"))


def events(text: str) -> list[tuple[str, Json]]:
    blocks = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


@pytest.fixture(params=[MODEL, SESSION])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_one_document(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.post(path, json={"text": "RO"})
    assert (reply.status_code, reply.json()) == (200, DONE_JSON)


async def test_a_model_is_told_all_wishes(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    await client.post(MODEL, json={"text": "RO", "version": "1", **WISHES})
    assert service.calls == [("generate", "tiny", "1", Input(text="RO"), SAMPLING)]


async def test_a_session_is_told_all_wishes(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    await client.post(SESSION, json={"tokens": [1], "position": 7, **WISHES})
    assert service.calls == [("generate_on_session", "s-1", Input(tokens=[1]), SAMPLING, 7)]


async def test_wishes_are_in_single_precision_as_over_grpc(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    await client.post(SESSION, json={"temperature": 0.8, "top_p": 1e39})
    sampling = service.calls[0][3]
    assert (sampling.temperature, sampling.top_p) == (np.float32(0.8), float("inf"))


async def test_wishes_have_the_cores_defaults(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    await client.post(SESSION, json={})
    assert service.calls == [("generate_on_session", "s-1", None, Sampling(), None)]


async def test_events_for_who_accepts_them(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.post(path, json={"text": "RO"}, headers=ACCEPT)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert events(reply.text) == [("token", {"id": 5, "text": "R", "position": 4}), ("done", DONE_JSON)]


@pytest.mark.parametrize(
    ("accept", "is_streamed"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream", True),
        ("text/event-stream; charset=utf-8", True),
        ("application/json, text/event-stream", True),
        ("text/*", True),
        ("text/event-stream, */*;q=0.1", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream; Q=0.0, application/json", False),
        ("text/event-stream;q=0.5, application/json", False),
        ("text/event-stream;q=0.5, */*", False),
        ("x-text/event-stream, text/event-streams", False),
    ],
)
async def test_what_a_client_accepts_is_read_as_the_standard_says(
    client: httpx.AsyncClient, accept: str, is_streamed: bool
) -> None:
    reply = await client.post(MODEL, json={"text": "RO"}, headers={"accept": accept})
    assert reply.headers["content-type"].startswith("text/event-stream" if is_streamed else "application/json")


async def test_what_a_client_accepts_may_stand_in_several_fields(client: httpx.AsyncClient) -> None:
    fields = [("accept", "application/json;q=0.5"), ("accept", "text/event-stream")]
    reply = await client.post(MODEL, json={"text": "RO"}, headers=fields)
    assert reply.headers["content-type"].startswith("text/event-stream")


async def test_line_breaks_stay_inside_their_event(client: httpx.AsyncClient, service: ScriptedCore, path: str) -> None:
    service.events = [GeneratedToken(0, "\n\nevent: done\r", 1), EVENTS[1]]
    reply = await client.post(path, json={"text": "RO"}, headers=ACCEPT)
    assert events(reply.text)[0] == ("token", {"id": 0, "text": "\n\nevent: done\r", "position": 1})


@pytest.mark.parametrize("headers", [{}, ACCEPT])
async def test_an_error_before_the_first_token_is_an_http_error(
    client: httpx.AsyncClient, service: ScriptedCore, path: str, headers: dict[str, str]
) -> None:
    service.events = [NotFoundError("no such model", reason="UNKNOWN_MODEL")]
    reply = await client.post(path, json={"text": "RO"}, headers=headers)
    assert (reply.status_code, reply.json()["reason"]) == (404, "UNKNOWN_MODEL")
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UnavailableError("draining", reason="DRAINING"), 503, "DRAINING"),
        (ZeroDivisionError("secret"), 500, "INTERNAL"),
    ],
)
async def test_an_error_after_it_is_the_last_event(
    client: httpx.AsyncClient, service: ScriptedCore, path: str, error: Exception, status: int, reason: str
) -> None:
    service.events = [EVENTS[0], error]
    reply = await client.post(path, json={"text": "RO"}, headers=ACCEPT)
    (_, _), (name, document) = events(reply.text)
    assert (reply.status_code, name) == (200, "error")
    assert (document["status"], document["reason"]) == (status, reason)
    assert "secret" not in reply.text


async def test_an_error_in_mid_way_fails_the_document(
    client: httpx.AsyncClient, service: ScriptedCore, path: str
) -> None:
    service.events = [EVENTS[0], UnavailableError("draining", reason="DRAINING")]
    reply = await client.post(path, json={"text": "RO"})
    assert (reply.status_code, reply.json()["reason"]) == (503, "DRAINING")


async def test_tokens_are_sent_as_they_come_and_end_with_their_client(
    app: FastAPI, service: ScriptedCore, path: str
) -> None:
    service.is_holding = True
    call = Call(app, path, {"text": "RO"}, headers=[(b"accept", b"text/event-stream")])
    await asyncio.wait_for(call.has_sent_body.wait(), 60)
    assert b"event: token" in call.sent[1]["body"]
    call.hang_up()
    await asyncio.wait([call.task])
    assert service.is_cancelled.is_set()
    assert len(call.sent) == 2
