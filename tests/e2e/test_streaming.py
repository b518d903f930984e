"""The main job on a ready-made bundle and a real server: one sequence over every transport, and many at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from tests.servers import RunningServer, serving
from tidegate.api import Prediction
from tidegate.client import Client
from tidegate.v1.sessions_pb2 import SessionGenerateRequest
from tidegate.v1.sessions_pb2_grpc import SessionsStub

ROOT = Path(__file__).parents[2]
MODEL = "shakespeare-lstm"
TEXT = "ROMEO.\nBut soft, what light through yonder window breaks?\n"
NUM_STREAMS = 32


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(ROOT / "bundles") as running:
        yield running


Told = tuple[list[float], list[str]]
"""Of each step its surprise, and the most probable next token."""


def told(predictions: list[Prediction]) -> Told:
    surprises = [prediction.surprise.mean for prediction in predictions if prediction.surprise is not None]
    return surprises, [prediction.next[0][0].token for prediction in predictions if prediction.next is not None]


def told_by_json(replies: list[dict[str, dict[str, object]]]) -> Told:
    predictions = [reply["prediction"] for reply in replies]
    return [each["surprise"]["mean"] for each in predictions], [each["next"][0]["token"] for each in predictions]  # type: ignore[index]


def whole(server: RunningServer, text: str) -> Told:
    with Client(server.grpc) as client:
        prediction = client.predict(MODEL, [text], every_step=True).predictions[0]
    assert prediction.surprise is not None
    assert prediction.surprise.steps is not None
    assert prediction.next is not None
    return list(prediction.surprise.steps), [candidates[0].token for candidates in prediction.next]


def by_http(server: RunningServer) -> Told:
    with httpx.Client(base_url=server.http) as client:
        session = client.post("/v1/sessions", json={"model": MODEL}).json()["id"]
        replies = [
            client.post(f"/v1/sessions/{session}:step", json={"text": letter, "position": position}).json()
            for position, letter in enumerate(TEXT)
        ]
    return told_by_json(replies)


def by_websocket(server: RunningServer) -> Told:
    session = httpx.post(f"{server.http}/v1/sessions", json={"model": MODEL}).json()["id"]
    with connect(f"ws://{urlsplit(server.http).netloc}/v1/sessions/{session}/stream") as socket:
        replies = []
        for letter in TEXT:
            socket.send(json.dumps({"text": letter}))
            replies.append(json.loads(socket.recv()))
    return told_by_json(replies)


def by_grpc_calls(server: RunningServer) -> Told:
    with Client(server.grpc) as client, client.open(MODEL) as session:
        return told([session.step(letter).prediction for letter in TEXT])


def by_grpc_stream(server: RunningServer) -> Told:
    with Client(server.grpc) as client, client.open(MODEL) as session, session.stream() as stream:
        return told([stream.step(letter).prediction for letter in TEXT])


def by_columns(server: RunningServer) -> Told:
    with Client(server.grpc) as client:
        ids = {token: id_ for id_, token in enumerate(json.loads((bundle() / "vocabulary.json").read_text())["tokens"])}
        tokens = {id_: token for token, id_ in ids.items()}
        with client.open(MODEL) as session, client.open(MODEL) as other, client.stream() as stream:
            stream.attach([other, session])
            replies = [stream.step([1, 0], tokens=[ids[letter], ids["e"]]) for letter in TEXT]
    surprises = [float(reply.surprise[0]) for reply in replies if reply.surprise is not None]
    return surprises, [tokens[int(np.ravel(reply.ids)[0])] for reply in replies if reply.ids is not None]


def bundle() -> Path:
    return ROOT / "bundles" / MODEL / "1"


@pytest.mark.parametrize("transport", [by_http, by_websocket, by_grpc_calls, by_grpc_stream, by_columns])
def test_stepped_over_any_transport_a_text_gets_what_predict_gives_the_whole(
    server: RunningServer, transport: Callable[[RunningServer], Told]
) -> None:
    surprises, tokens = transport(server)
    expected_surprises, expected_tokens = whole(server, TEXT)
    assert len(surprises) == len(TEXT)
    np.testing.assert_allclose(surprises, expected_surprises, rtol=1e-4, atol=1e-5)
    assert tokens == expected_tokens


def test_a_generation_is_repeated_over_another_transport(server: RunningServer) -> None:
    httpx.post(f"{server.http}/v1/sessions", json={"model": MODEL, "id": "twice"}).raise_for_status()
    body = {"text": "RO", "position": 0, "max_tokens": 5, "temperature": 0.8, "top_p": 0.9}
    first = httpx.post(f"{server.http}/v1/sessions/twice:generate", json=body).json()
    with grpc.insecure_channel(server.grpc) as channel:
        request = SessionGenerateRequest(
            session="twice", text="RO", position=0, max_tokens=5, temperature=0.8, top_p=0.9
        )
        *_, last = SessionsStub(channel).Generate(request)
    assert (last.done.text, list(last.done.tokens), last.done.position) == (first["text"], first["tokens"], 7)


@contextmanager
def streamers(server: RunningServer) -> Iterator[subprocess.Popen[str]]:
    """Clients of NUM_STREAMS streams in a process of their own, all half-way."""
    command = [sys.executable, "-m", "tests.e2e.streamers", server.grpc, MODEL, str(NUM_STREAMS), TEXT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "half-way\n"
            yield process
        finally:
            process.kill()


def test_64_streams_share_runs_and_half_of_them_killed_disturb_no_other(server: RunningServer) -> None:
    before = counters(server)
    with streamers(server) as survivors:
        with streamers(server) as victims:
            victims.kill()
        lines, _ = survivors.communicate("go on\n")
    after = counters(server)
    surprises = json.loads(lines)
    assert len(surprises) == NUM_STREAMS
    for index, told_surprises in enumerate(surprises):
        expected, _ = whole(server, TEXT[index:] + TEXT[:index])
        np.testing.assert_allclose(told_surprises, expected, rtol=1e-4, atol=1e-5)
    rows, runs = (after[name] - before[name] for name in ("tidegate_rows_total", "tidegate_runs_total"))
    assert rows >= 1.5 * NUM_STREAMS * len(TEXT)
    # Each process steps its 32 streams in lockstep, so runs hold most of them; a loaded machine splits some.
    assert rows / runs > NUM_STREAMS / 4, "streams must share runs"


def counters(server: RunningServer) -> dict[str, float]:
    """The metrics of MODEL, labels dropped."""
    lines = httpx.get(f"{server.http}/metrics").text.splitlines()
    found = [re.fullmatch(rf'(\w+){{model="{MODEL}",version="1"}} (\S+)', line) for line in lines]
    return {match[1]: float(match[2]) for match in found if match}


def test_the_serving_process_has_no_torch(server: RunningServer) -> None:
    assert whole(server, "x")
    libraries = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in libraries
    assert "torch" not in libraries
