"""A session's own chart and its model's, as a real server tells them over each interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.bundles import VOCABULARY, write_tiny_bundle
from tests.servers import RunningServer, serving
from tests.service.serving import change_bundle
from tests.service.test_service_drift import BLOCK, DRIFT, TEXT
from tidegate.client import Client

MODEL = "tiny"
CHUNKS = [TEXT[start : start + BLOCK] for start in range(0, 5 * BLOCK, BLOCK)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("bundles")
    change_bundle(write_tiny_bundle(root, MODEL), "2", drift=DRIFT)
    with serving(root) as server:
        yield server


def test_every_interface_tells_the_same(server: RunningServer) -> None:
    told: list[list[dict[str, Any] | None]] = []
    for id_ in ("http", "websocket"):
        opened = httpx.post(f"{server.http}/v1/sessions", json={"model": MODEL, "id": id_, "drift": True})
        assert opened.status_code == 201
    steps = [httpx.post(f"{server.http}/v1/sessions/http:step", json={"text": chunk}).json() for chunk in CHUNKS]
    told.append([step["prediction"].get("drift") for step in steps])
    with connect(f"{server.http.replace('http', 'ws', 1)}/v1/sessions/websocket/stream") as socket:
        frames = []
        for chunk in CHUNKS:
            socket.send(json.dumps({"text": chunk}))
            frames.append(json.loads(socket.recv()))
    told.append([frame["prediction"].get("drift") for frame in frames])
    with Client(server.grpc) as client:
        with client.open(MODEL, drift=True) as session:
            found = [session.step(chunk).prediction.drift for chunk in CHUNKS]
            told.append([None if each is None else each._asdict() for each in found])
        with client.open(MODEL, drift=True) as one, client.open(MODEL) as other, client.stream() as stream:
            stream.attach([one, other])
            columns = []
            for chunk in CHUNKS:
                tokens = encoded(chunk) * 2
                columns.append(stream.step([0, 1], tokens=tokens, lengths=[BLOCK, BLOCK]).drift)
            assert all(set(drift) <= {0} for drift in columns)
            told.append([drift[0]._asdict() if drift else None for drift in columns])
        model = client.model(MODEL)
        last = client.session("http").info.drift
    assert last is not None
    assert last._asdict() == told[0][-1]
    assert httpx.get(f"{server.http}/v1/sessions/http").json()["drift"] == told[0][-1]
    assert told[0][0] is None
    assert [each and each["blocks"] for each in told[0]] == [None, 1, 2, 3, 4]
    for other_told in told[1:]:
        assert [each and (each["state"], each["blocks"]) for each in other_told] == [
            each and (each["state"], each["blocks"]) for each in told[0]
        ]
        assert other_told[-1] is not None
        assert told[0][-1] is not None
        assert other_told[-1]["ewma"] == pytest.approx(told[0][-1]["ewma"], abs=1e-5)
    assert model.drift is not None
    assert model.drift.blocks == 5 * 4  # four sessions with charts of their own, and one without
    document = httpx.get(f"{server.http}/v1/models/{MODEL}").json()
    assert document["drift"]["blocks"] == 20
    assert document["drift"]["state"] == model.drift.state
    assert document["surprise"]["steps"] == 5 * 5 * BLOCK


def encoded(text: str) -> list[int]:
    return [VOCABULARY.index(character) for character in text]


def test_a_model_without_a_chart_refuses(server: RunningServer) -> None:
    body = {"model": MODEL, "version": "1", "drift": True}
    refused = httpx.post(f"{server.http}/v1/sessions", json=body)
    assert refused.status_code == 412
    assert refused.json()["reason"] == "NO_CHART"
