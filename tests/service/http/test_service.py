"""The transport over the real core: one sequence, however it is sent, gets what ``:predict`` says of the whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle
from tests.service.http.scripted import Socket
from tidegate.config import load_settings
from tidegate.service import Service
from tidegate.transports.http.app import create_app

Json = Any

TEXT = "ROMEO: what light"


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Service]:
    write_tiny_bundle(tmp_path)
    write_tiny_forecast_bundle(tmp_path)
    service = Service(load_settings({"bundles": tmp_path}))
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
def app(core: Service) -> FastAPI:
    return create_app(core)


async def open_session(client: httpx.AsyncClient, model: str) -> str:
    reply = await client.post("/v1/sessions", json={"model": model})
    assert reply.status_code == 201
    return str(reply.json()["id"])


async def whole(client: httpx.AsyncClient, model: str, source: Json) -> Json:
    body = {"sequences": [source], "top": 65, "every_step": True}
    reply = await client.post(f"/v1/models/{model}:predict", json=body)
    assert reply.status_code == 200
    return reply.json()["predictions"][0]


def probabilities(step: Json) -> dict[str, Json]:
    return {candidate["token"]: pytest.approx(candidate["probability"], abs=1e-5, rel=1e-4) for candidate in step}


async def test_steps_equal_the_whole(client: httpx.AsyncClient) -> None:
    session = await open_session(client, "tiny")
    expected = await whole(client, "tiny", {"text": TEXT})
    for position, character in enumerate(TEXT):
        body = {"text": character, "position": position, "top": 65}
        reply = (await client.post(f"/v1/sessions/{session}:step", json=body)).json()
        assert reply["position"] == position + 1
        assert probabilities(reply["prediction"]["next"]) == probabilities(expected["next"][position])


async def test_a_websocket_equals_the_whole(client: httpx.AsyncClient, app: FastAPI) -> None:
    session = await open_session(client, "tiny")
    expected = await whole(client, "tiny", {"text": TEXT})
    async with Socket(app, f"/v1/sessions/{session}/stream") as socket:
        for character in TEXT:
            socket.send({"text": character, "top": 65})
        for position, step in enumerate(expected["next"], start=1):
            reply = await socket.answer()
            assert reply["position"] == position
            assert probabilities(reply["prediction"]["next"]) == probabilities(step)


async def test_forecasts_of_rows_equal_the_whole(client: httpx.AsyncClient) -> None:
    rows = [[100 + 5 * hour, hour] for hour in range(6)]
    session = await open_session(client, "tiny-forecast")
    expected = await whole(client, "tiny-forecast", {"values": rows})
    for row, forecast in zip(rows, expected["forecast"], strict=True):
        reply = (await client.post(f"/v1/sessions/{session}:step", json={"values": [row]})).json()
        told = reply["prediction"]["forecast"]
        assert told["quantiles"] == forecast["quantiles"]
        for quantiles, whole_quantiles in zip(told["values"], forecast["values"], strict=True):
            assert quantiles == pytest.approx(whole_quantiles, abs=1e-3, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "source", "reason"),
    [
        ("tiny", b'{"text": "caf\xc3\xa9"}', "UNKNOWN_TOKEN"),
        ("tiny", b'{"text": ""}', "EMPTY_SEQUENCE"),
        ("tiny", b'{"tokens": [65]}', "TOKEN_OUT_OF_RANGE"),
        ("tiny", b'{"tokens": [18446744073709551616]}', "TOKEN_OUT_OF_RANGE"),
        ("tiny-forecast", b'{"values": [[1, 2], [NaN, 2]]}', "NOT_FINITE"),
        ("tiny-forecast", b'{"values": [[1, 1e39]]}', "NOT_FINITE"),
        ("tiny-forecast", b'{"values": [[1]]}', "WRONG_WIDTH"),
        ("tiny-forecast", b'{"values": []}', "EMPTY_SEQUENCE"),
        ("tiny-forecast", b'{"text": "R"}', "WRONG_KIND"),
        ("tiny", b'{"text": "R", "position": 5}', "POSITION_CONFLICT"),
    ],
)
async def test_bad_input_is_refused_and_the_session_untouched(
    client: httpx.AsyncClient, model: str, source: bytes, reason: str
) -> None:
    session = await open_session(client, model)
    reply = await client.post(f"/v1/sessions/{session}:step", content=source)
    assert reply.json()["reason"] == reason
    assert reply.status_code == (409 if reason == "POSITION_CONFLICT" else 400)
    assert (await client.get(f"/v1/sessions/{session}")).json()["position"] == 0


async def test_a_repeat_is_answered_again(client: httpx.AsyncClient) -> None:
    session = await open_session(client, "tiny")
    body = {"text": "ROMEO", "position": 0}
    first = await client.post(f"/v1/sessions/{session}:step", json=body)
    again = await client.post(f"/v1/sessions/{session}:step", json=body)
    assert again.content == first.content


async def test_metrics_are_prometheus_text(client: httpx.AsyncClient) -> None:
    reply = await client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")
    assert "tidegate_" in reply.text
