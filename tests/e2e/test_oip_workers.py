"""Several processes behind one port: a sequence is one sequence, whichever worker its requests reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.bundles import write_tiny_bundle
from tests.servers import RunningServer, serving

TOKENS = np.random.default_rng(7).integers(0, 65, (6, 6)).tolist()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(bundles)
    with serving(bundles, "--workers", "2") as running:
        yield running


def infer(server: RunningServer, tokens: list[int], **parameters: Any) -> httpx.Response:
    """Ask over a connection of its own, which the kernel hands to either worker."""
    tensor = {"name": "tokens", "datatype": "INT64", "shape": [1, len(tokens)], "data": tokens}
    body = {"inputs": [tensor], "outputs": [{"name": "surprise"}], "parameters": parameters}
    return httpx.post(f"{server.http}/v2/models/tiny/infer", json=body)


def surprise(reply: httpx.Response) -> list[float]:
    assert reply.status_code == httpx.codes.OK, reply.text
    found: list[float] = reply.json()["outputs"][0]["data"]
    return found


def test_steps_of_a_sequence_reach_it_over_any_connection(server: RunningServer) -> None:
    for number, tokens in enumerate(TOKENS, start=1):
        whole = surprise(infer(server, tokens))
        parts: list[float] = []
        for step, token in enumerate(tokens):
            flags = {"sequence_start": step == 0, "sequence_end": step == len(tokens) - 1}
            parts += surprise(infer(server, [token], sequence_id=number, **flags))
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


def test_errors_are_the_owner_s(server: RunningServer) -> None:
    replies = [infer(server, [1], sequence_id=f"nobody-{number}") for number in range(6)]
    assert {reply.status_code for reply in replies} == {httpx.codes.BAD_REQUEST}
    assert all("must specify the START flag" in reply.json()["error"] for reply in replies)
    wrong = [infer(server, [99], sequence_id=f"wrong-{number}", sequence_start=True) for number in range(6)]
    assert {reply.headers["tidegate-reason"] for reply in wrong} == {"TOKEN_OUT_OF_RANGE"}


def test_every_worker_knows_every_sequence_by_its_name(server: RunningServer) -> None:
    for number in range(20, 26):
        surprise(infer(server, [1], sequence_id=number, sequence_start=True))
    sessions = httpx.get(f"{server.http}/v1/sessions").json()["sessions"]
    found = {session["id"] for session in sessions if session["origin"] == "oip"}
    assert {f"q~i~tiny~{number}" for number in range(20, 26)} <= found


def test_positions_travel_too(server: RunningServer) -> None:
    for number in range(30, 36):
        first = infer(server, [1, 2], sequence_id=number, sequence_start=True, tidegate_position=0)
        again = infer(server, [1, 2], sequence_id=number, sequence_start=True, tidegate_position=0)
        assert first.json()["parameters"] == {"tidegate_position": 2}
        assert surprise(first) == surprise(again)


def test_statistics_are_those_of_all_workers_whichever_is_asked(server: RunningServer) -> None:
    def told() -> dict[str, Any]:
        entry: dict[str, Any] = httpx.get(f"{server.http}/v2/models/tiny/stats").json()["model_stats"][0]
        return entry

    before = told()
    for number in range(40, 52):
        surprise(infer(server, [1, 2], sequence_id=number, sequence_start=True, sequence_end=True))
    after = [told() for _ in range(6)]
    assert {each["inference_count"] - before["inference_count"] for each in after} == {12}
    grown = {each["inference_stats"]["queue"]["count"] - before["inference_stats"]["queue"]["count"] for each in after}
    assert grown == {12}
