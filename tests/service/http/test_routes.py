"""Every route asks the service what the request says, and answers with the documents of the contract."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from tests.clock import START
from tests.service.http.scripted import (
    MODEL_JSON,
    PREDICTION_JSON,
    SESSION,
    SESSION_JSON,
    Call,
    ScriptedCore,
)
from tidegate.api import (
    Candidate,
    Drift,
    Forecast,
    Input,
    Prediction,
    SessionPage,
    SessionRequest,
    StepOptions,
    Surprise,
)
from tidegate.config import load_settings
from tidegate.transports.proxies import behind_proxies

Json = Any

STEP = "/v1/sessions/s-1:step"


async def test_models_are_listed_by_page(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    reply = await client.get("/v1/models", params={"limit": 7, "page_token": "abc"})
    assert reply.json() == {"models": [MODEL_JSON], "next_page_token": ""}
    assert service.calls == [("models", 7, "abc")]


@pytest.mark.parametrize(("query", "version"), [("", None), ("?version=1", "1")])
async def test_a_model_is_shown(client: httpx.AsyncClient, service: ScriptedCore, query: str, version: str) -> None:
    reply = await client.get(f"/v1/models/tiny{query}")
    assert reply.json() == MODEL_JSON
    assert service.calls == [("model", "tiny", version)]


async def test_a_reload_reports(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/models:reload")
    assert reply.json() == {
        "loaded": ["tiny/2"],
        "removed": ["tiny/1"],
        "refused": [{"bundle": "bad/1", "reason": "BAD_BUNDLE", "message": "checksum differs"}],
    }


async def test_predict_takes_many_sequences(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    body = {"sequences": [{"text": "RO"}, {"tokens": [1, 2]}], "top": 3, "every_step": True, "version": "1"}
    reply = await client.post("/v1/models/tiny:predict", json=body)
    assert reply.json() == {"model": "tiny", "version": "2", "predictions": [PREDICTION_JSON, PREDICTION_JSON]}
    assert service.calls == [("predict", "tiny", "1", [Input(text="RO"), Input(tokens=[1, 2])], StepOptions(3, True))]


async def test_opening_answers_created_with_the_place(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    body = {"model": "tiny", "id": "s-1", "ttl_seconds": 60, "idle_seconds": 1.5, "seed": 2**64 - 1, "durable": True}
    reply = await client.post("/v1/sessions", json=body)
    assert (reply.status_code, reply.json()) == (201, SESSION_JSON)
    assert reply.headers["location"] == "/v1/sessions/s-1"
    expected = SessionRequest("tiny", None, durable=True, ttl_seconds=60, idle_seconds=1.5, id="s-1", seed=2**64 - 1)
    assert service.calls == [("open", expected)]


async def test_sessions_are_listed_by_page(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    reply = await client.get("/v1/sessions")
    assert reply.json() == {"sessions": [SESSION_JSON], "next_page_token": "s-1"}
    assert service.calls == [("list", 0, "")]


async def test_a_session_that_json_does_not_hold_hides_no_other(
    client: httpx.AsyncClient, service: ScriptedCore
) -> None:
    bad = [SESSION._replace(created_at=1e30), SESSION._replace(expires_at=float("nan"))]
    service.page = SessionPage([bad[0], SESSION, bad[1]], "")
    reply = await client.get("/v1/sessions")
    assert (reply.status_code, reply.json()) == (200, {"sessions": [SESSION_JSON], "next_page_token": ""})


async def test_a_session_is_shown(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/sessions/s-1")).json() == SESSION_JSON


async def test_closing_has_nothing_to_say(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    reply = await client.delete("/v1/sessions/s-1")
    assert (reply.status_code, reply.content) == (204, b"")
    assert service.calls == [("close", "s-1")]


async def test_a_step_is_answered(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    reply = await client.post(STEP, json={"text": "R", "position": 3, "top": 2, "every_step": True})
    assert reply.json() == {"session": "s-1", "position": 1, "prediction": PREDICTION_JSON}
    assert reply.headers["content-type"] == "application/json"
    assert service.calls == [("step", "s-1", Input(text="R"), StepOptions(2, True), 3)]


async def test_a_step_need_not_say_more_than_its_input(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    await client.post(STEP, json={"tokens": [1], "position": None, "top": None})
    assert service.calls == [("step", "s-1", Input(tokens=[1]), StepOptions(1, False), None)]


async def test_values_become_rows(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    await client.post(STEP, json={"values": [[1, 2.5], [3, -4]]})
    values = service.calls[0][2].values
    assert values.dtype == np.float32
    assert values.tolist() == [[1, 2.5], [3, -4]]


@pytest.mark.parametrize("name", ["a", "~.-_", "A-z.0~9_", "x" * 128])
@pytest.mark.parametrize("colon", [":", "%3A"])
async def test_any_id_can_be_stepped(client: httpx.AsyncClient, service: ScriptedCore, name: str, colon: str) -> None:
    reply = await client.post(f"/v1/sessions/{name}{colon}step", json={"text": "R"})
    assert reply.status_code == 200
    assert service.calls[0][1] == name


async def test_percent_encoded_ids_are_decoded_once(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    await client.post("/v1/sessions/a%7Eb%2525:step", json={"text": "R"})
    assert service.calls[0][1] == "a~b%25"


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/sessions/s-1/stream"])
async def test_a_websocket_that_is_asked_for_by_plain_http_is_told(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path)
    assert (reply.status_code, reply.json()["reason"]) == (400, "WEBSOCKET_ONLY")


async def test_a_step_behind_a_mount_is_routed_the_same(app: FastAPI, service: ScriptedCore) -> None:
    call = Call(app, STEP, {"text": "R"})
    await call.task
    direct = call.sent
    scope_path = "/behind" + STEP
    mounted = Call(app, scope_path, {"text": "R"}, root_path="/behind")
    await mounted.task
    assert mounted.sent[0]["status"] == direct[0]["status"] == 200
    assert service.calls[0] == service.calls[1]


CANDIDATES = [Candidate("a", 1, 0.75), Candidate("b", 2, 0.25)]
CANDIDATES_JSON = [{"token": "a", "id": 1, "probability": 0.75}, {"token": "b", "id": 2, "probability": 0.25}]
FORECAST = Forecast((0.1, 0.9), [[1.0, 2.0], [3.0, float("inf")]])
FORECAST_JSON = {"quantiles": [0.1, 0.9], "values": [[1.0, 2.0], [3.0, None]]}
OUTPUT = np.array([[1.0, np.nan], [2.0, 3.0]], np.float32)

SHAPES: list[tuple[Prediction, Json]] = [
    (Prediction(2, next=[CANDIDATES]), {"length": 2, "next": CANDIDATES_JSON}),
    (
        Prediction(2, every_step=True, next=[CANDIDATES, CANDIDATES[:1]]),
        {"length": 2, "next": [CANDIDATES_JSON, CANDIDATES_JSON[:1]]},
    ),
    (Prediction(1, forecast=[FORECAST]), {"length": 1, "forecast": FORECAST_JSON}),
    (Prediction(1, every_step=True, forecast=[FORECAST]), {"length": 1, "forecast": [FORECAST_JSON]}),
    (Prediction(2, outputs={"y": OUTPUT[1:]}), {"length": 2, "outputs": {"y": [2.0, 3.0]}}),
    (Prediction(2, every_step=True, outputs={"y": OUTPUT}), {"length": 2, "outputs": {"y": [[1.0, None], [2.0, 3.0]]}}),
    (Prediction(1, surprise=Surprise(float("nan"), "bits")), {"length": 1, "surprise": {"mean": None, "unit": "bits"}}),
    (
        Prediction(2, every_step=True, surprise=Surprise(1.5, "bits", [1.0, 2.0])),
        {"length": 2, "surprise": {"mean": 1.5, "unit": "bits", "steps": [1.0, 2.0]}},
    ),
    (
        Prediction(1, drift=Drift("warning", 2.25, 7)),
        {"length": 1, "drift": {"state": "warning", "ewma": 2.25, "blocks": 7}},
    ),
]


@pytest.mark.parametrize(("prediction", "document"), SHAPES)
async def test_predictions_have_the_shapes_of_the_contract(
    client: httpx.AsyncClient, service: ScriptedCore, prediction: Prediction, document: Json
) -> None:
    service.prediction = prediction
    step = await client.post(STEP, json={"text": "R"})
    assert step.json()["prediction"] == document
    whole = await client.post("/v1/models/tiny:predict", json={"sequences": [{"text": "R"}]})
    assert whole.json()["predictions"] == [document]


@pytest.mark.parametrize(
    ("is_ready", "is_draining", "status", "word"),
    [(True, False, 200, "ready"), (False, False, 503, "loading"), (False, True, 503, "draining")],
)
async def test_readiness(
    client: httpx.AsyncClient, service: ScriptedCore, is_ready: bool, is_draining: bool, status: int, word: str
) -> None:
    service.is_ready, service.is_draining = is_ready, is_draining
    reply = await client.get("/readyz")
    assert (reply.status_code, reply.json()) == (status, {"status": word})


async def test_a_server_that_drains_is_alive(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    service.is_ready, service.is_draining = False, True
    reply = await client.get("/livez")
    assert (reply.status_code, reply.json()) == (200, {"status": "alive"})


async def test_the_front_door_leads_to_the_documents(client: httpx.AsyncClient) -> None:
    reply = await client.get("/")
    assert (reply.status_code, reply.headers["location"]) == (307, "/docs")
    assert "swagger" in (await client.get("/docs")).text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (STEP, {"text": "R"}),
        ("/v1/models/tiny:predict", {"sequences": [{"text": "R"}]}),
        ("/v1/models/tiny:generate", {"text": "R"}),
        ("/v1/sessions/s-1:generate", {}),
    ],
)
class TestDeadline:
    async def test_is_the_clients(
        self, client: httpx.AsyncClient, service: ScriptedCore, path: str, body: Json
    ) -> None:
        await client.post(path, json=body, headers={"tidegate-timeout": "1000000.5"})
        assert service.deadlines == [START + 1_000_000.5]

    async def test_is_the_settings_without_a_wish(
        self, client: httpx.AsyncClient, service: ScriptedCore, path: str, body: Json
    ) -> None:
        await client.post(path, json=body)
        assert service.deadlines == [START + service.settings.request_timeout]

    async def test_is_refused_where_it_is_none(
        self, client: httpx.AsyncClient, service: ScriptedCore, path: str, body: Json
    ) -> None:
        reply = await client.post(path, json=body, headers={"tidegate-timeout": "soon"})
        assert reply.status_code == 400
        assert "tidegate-timeout" in reply.json()["detail"]
        assert service.calls == []

    async def test_a_client_that_hangs_up_cancels_the_work(
        self, app: FastAPI, service: ScriptedCore, path: str, body: Json
    ) -> None:
        service.is_holding = True
        call = Call(app, path, body)
        await service.has_asked.wait()
        call.hang_up()
        await asyncio.wait([call.task])
        await asyncio.wait_for(service.is_cancelled.wait(), 60)
        assert not call.sent


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", ""])
async def test_a_deadline_must_be_a_time_to_come(
    client: httpx.AsyncClient, service: ScriptedCore, seconds: str
) -> None:
    reply = await client.post(STEP, json={"text": "R"}, headers={"tidegate-timeout": seconds})
    assert reply.status_code == 400
    assert "tidegate-timeout" in reply.json()["detail"]
    assert service.calls == []


async def test_head_is_answered_wherever_get_is_and_without_the_body(app: FastAPI, client: httpx.AsyncClient) -> None:
    documented = app.openapi()["paths"]
    paths = {path.format(session="s-1", model="tiny") for path in documented if "get" in documented[path]}
    paths |= {"/", "/docs", "/openapi.json"}
    assert paths >= {"/livez", "/readyz", "/metrics", "/v1/models/tiny", "/v1/sessions/s-1/snapshot"}
    for path in paths:
        got, told = await client.get(path), await client.head(path)
        assert (path, told.status_code, told.content) == (path, got.status_code, b"")
        assert told.headers.get("content-type") == got.headers.get("content-type")


async def test_head_tells_that_a_server_is_not_ready(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    service.is_ready = False
    reply = await client.head("/readyz")
    assert (reply.status_code, reply.content) == (503, b"")


async def test_head_is_refused_where_there_is_no_get(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    assert (await client.head("/v1/sessions/s-1:step")).status_code == 405
    assert service.calls == []


@pytest.mark.parametrize("prefix", ["", "/models"])
async def test_links_begin_with_the_path_below_which_a_proxy_shows_the_server(app: FastAPI, prefix: str) -> None:
    behind = behind_proxies(app, load_settings({"root_path": "/models"}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(behind), base_url=f"http://test{prefix}") as client:
        assert (await client.get("/")).headers["location"] == "/models/docs"
        assert "'/models/openapi.json'" in (await client.get("/docs")).text
        document = (await client.get("/openapi.json")).json()
        assert document["servers"] == [{"url": "/models"}]
        assert "/v1/models" in document["paths"]
        opened = await client.post("/v1/sessions", json={"model": "tiny"})
        restored = await client.post("/v1/sessions:restore", content=b"snapshot")
        assert opened.headers["location"] == restored.headers["location"] == "/models/v1/sessions/s-1"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert "servers" not in (await client.get("/openapi.json")).json()
