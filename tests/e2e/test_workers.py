"""Several processes behind one port: sessions are right whichever is hit, and a worker's death is a passing thing."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from tests.bundles import write_tiny_bundle
from tests.servers import RunningServer, run_tidegate, serving
from tidegate.api import GeneratedToken, GenerationDone
from tidegate.client import Client
from tidegate.errors import TidegateError

TEXT = "Hello World"
FLAGS = ("--workers", "2", "--replica", "r")
ENDLESS = 100_000
"""Tokens: seconds of work, which no test waits for."""


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    root = tmp_path / "bundles"
    write_tiny_bundle(root)
    return root


@pytest.fixture
def server(bundles: Path) -> Iterator[RunningServer]:
    with serving(bundles, *FLAGS) as running:
        yield running


def post(server: RunningServer, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask over a connection of its own, which the kernel hands to either worker."""
    reply = httpx.post(f"{server.http}/v1/{path}", json=body)
    reply.raise_for_status()
    return reply.json()


def worker_of(session: str) -> str:
    return session.split("~")[1]


def open_on_both(server: RunningServer) -> dict[str, str]:
    """A session of each worker, by the worker's name."""
    found: dict[str, str] = {}
    for _ in range(100):
        session = post(server, "sessions", {"model": "tiny"})["id"]
        found.setdefault(worker_of(session), session)
        if len(found) == 2:
            break
    assert set(found) == {"r-0", "r-1"}
    return found


def test_a_session_is_right_whichever_worker_is_hit(server: RunningServer) -> None:
    whole = post(server, "models/tiny:predict", {"sequences": [{"text": TEXT}], "every_step": True})["predictions"][0]
    for session in open_on_both(server).values():
        replies = [
            post(server, f"sessions/{session}:step", {"text": letter, "position": position})
            for position, letter in enumerate(TEXT)
        ]
        assert [reply["position"] for reply in replies] == list(range(1, len(TEXT) + 1))
        surprises = [reply["prediction"]["surprise"]["mean"] for reply in replies]
        assert surprises == pytest.approx(whole["surprise"]["steps"], rel=1e-4, abs=1e-5)


def test_one_stream_carries_sessions_of_both_workers(server: RunningServer) -> None:
    ids = list(open_on_both(server).values())
    with Client(server.grpc) as client:
        with client.stream() as columns:
            assert list(columns.attach(ids).positions) == [0, 0]
            for position in range(1, 6):
                result = columns.step([0, 1], tokens=[position, position])
                assert not result.errors
                assert list(result.positions) == [position, position]
        for session in map(client.session, ids):
            with session.stream() as steps:
                assert [steps.step(letter).position for letter in TEXT] == list(range(6, 6 + len(TEXT)))


def test_a_web_socket_steps_a_session_of_either_worker(server: RunningServer) -> None:
    for session in open_on_both(server).values():
        # Each connection goes to either worker.
        for turn in range(4):
            with connect(f"ws://{urlsplit(server.http).netloc}/v1/sessions/{session}/stream") as stream:
                for position in range(3 * turn, 3 * turn + 3):
                    stream.send(json.dumps({"text": "H", "position": position}))
                    assert json.loads(stream.recv())["position"] == position + 1


def test_an_id_that_the_client_chose_is_one_session(server: RunningServer) -> None:
    infos = [post(server, "sessions", {"model": "tiny", "id": "mine", "seed": 1}) for _ in range(8)]
    assert {(info["id"], info["position"]) for info in infos} == {("mine", 0)}
    for position in range(8):
        assert post(server, "sessions/mine:step", {"text": "H"})["position"] == position + 1
    with Client(server.grpc) as client:
        assert [session.id for session in client.sessions()] == ["mine"]


def test_generation_on_a_session_of_either_worker_is_the_same(server: RunningServer) -> None:
    body = {"text": TEXT, "max_tokens": 20, "seed": 5}
    replies = [post(server, f"sessions/{session}:generate", body) for session in open_on_both(server).values()]
    assert replies[0]["tokens"] == replies[1]["tokens"]
    assert replies[0]["position"] == replies[1]["position"] == len(TEXT) + 20


def test_a_worker_that_dies_is_started_again_and_the_other_serves_on(server: RunningServer) -> None:
    sessions = open_on_both(server)
    post(server, f"sessions/{sessions['r-1']}:step", {"text": "H"})
    os.kill(server.ready["workers"]["r-0"], signal.SIGKILL)
    ended = server.wait_for("worker ended")
    assert (ended["worker"], ended["code"]) == ("r-0", -signal.SIGKILL)
    assert server.wait_for("worker ready")["worker"] == "r-0"
    assert post(server, f"sessions/{sessions['r-1']}:step", {"text": "e"})["position"] == 2
    lost = httpx.post(f"{server.http}/v1/sessions/{sessions['r-0']}:step", json={"text": "H"})
    assert (lost.status_code, lost.json()["reason"]) == (404, "UNKNOWN_SESSION")
    for session in open_on_both(server).values():
        assert post(server, f"sessions/{session}:step", {"text": TEXT})["position"] == len(TEXT)


def test_sigterm_drains_every_worker(server: RunningServer) -> None:
    sessions = open_on_both(server)
    with Client(server.grpc) as client:
        runs = [client.session(session).generate("A", max_tokens=500) for session in sessions.values()]
        firsts = [next(run) for run in runs]
        server.tell(signal.SIGTERM)
        for first, run in zip(firsts, runs, strict=True):
            events = [first, *run]
            assert isinstance(events[-1], GenerationDone)
            assert len(events) == 501
    assert server.wait() == 0
    assert [event["event"] for event in server.events].count("draining") == 3


def test_a_second_signal_stops_every_worker_at_once(bundles: Path) -> None:
    with serving(bundles, *FLAGS, "--drain-timeout", "100") as server, Client(server.grpc) as client:
        events = client.generate("tiny", "A", max_tokens=ENDLESS)
        assert isinstance(next(events), GeneratedToken)
        server.tell(signal.SIGTERM)
        for _ in range(3):
            server.wait_for("draining")
        server.tell(signal.SIGTERM)
        with pytest.raises(TidegateError):
            list(events)
        assert server.wait() == 0


def test_a_hangup_and_a_call_reload_every_worker(bundles: Path, server: RunningServer) -> None:
    write_tiny_bundle(bundles, version="2", seed=1)
    server.tell(signal.SIGHUP)
    assert [server.wait_for("reloaded")["loaded"] for _ in range(2)] == [["tiny/2"], ["tiny/2"]]
    write_tiny_bundle(bundles, version="3", seed=2)
    assert post(server, "models:reload")["loaded"] == ["tiny/3"]
    assert {httpx.get(f"{server.http}/v1/models/tiny").json()["version"] for _ in range(16)} == {"3"}


def test_any_worker_tells_the_figures_of_all(server: RunningServer) -> None:
    for session in open_on_both(server).values():
        post(server, f"sessions/{session}:step", {"text": TEXT})
    for _ in range(8):  # each connection goes to either worker
        figures = metrics(server)
        assert figures["tidegate_steps_total", "step"] == 2 * len(TEXT)
        assert figures["tidegate_workers", ""] == 2
        assert figures["tidegate_models_loaded", ""] == 1


def test_sums_never_fall_though_a_worker_is_killed_again_and_again(server: RunningServer) -> None:
    """Figures are read before each kill, and right after it: what was once told stays."""
    killed = dict(server.ready["workers"])
    before: dict[tuple[str, str], float] = {}
    for _ in range(3):
        sessions = open_on_both(server)
        for session in sessions.values():
            post(server, f"sessions/{session}:step", {"text": TEXT})
        before = _no_less(metrics(server), before)
        os.kill(killed["r-0"], signal.SIGKILL)
        assert server.wait_for("worker ended")["worker"] == "r-0"
        gone = metrics(server)
        before = _no_less(gone, before)
        assert gone["tidegate_workers", ""] == 1, "a dead worker's gauges vanish"
        killed["r-0"] = server.wait_for("worker ready")["pid"]
        before = _no_less(metrics(server), before)
    assert before["tidegate_steps_total", "step"] == 6 * len(TEXT)
    assert before["tidegate_starts_total", ""] == 2 + 3


def metrics(server: RunningServer) -> dict[tuple[str, str], float]:
    """Every figure by name and kind, over a connection of its own; counters of a worker that is away among them."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.http}/metrics").text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name not in {"model", "version"}}
            found[sample.name, ",".join(labels.values())] = sample.value
    return found


def _no_less(now: dict[tuple[str, str], float], before: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """``now``, where nothing that is counted is less than it was ``before``."""
    counters = {key: value for key, value in before.items() if key[0].endswith(("_total", "_count", "_sum", "_bucket"))}
    fallen = {key: (value, now.get(key)) for key, value in counters.items() if not value <= now.get(key, -1.0)}
    assert fallen == {}
    return now


def test_workers_end_when_their_supervisor_is_killed(server: RunningServer) -> None:
    server.process.kill()
    # The log ends when the last process that writes to it does.
    assert server.wait() == -signal.SIGKILL


@pytest.mark.parametrize("flag", ["--http", "--grpc"])
def test_a_port_in_use_is_told_before_anything_starts(bundles: Path, flag: str) -> None:
    free = {"--http": "127.0.0.1:0", "--grpc": "127.0.0.1:0"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        where = [text for pair in (free | {flag: address}).items() for text in pair]
        result = run_tidegate("serve", "--bundles", str(bundles), *where, *FLAGS)
    assert result.returncode == 2
    assert result.stderr == f"tidegate: {flag}: {address}: address already in use\n"


def test_two_servers_do_not_share_a_port(bundles: Path, server: RunningServer) -> None:
    result = run_tidegate("serve", "--bundles", str(bundles), "--http", "127.0.0.1:0", "--grpc", server.grpc, *FLAGS)
    assert (result.returncode, server.grpc in result.stderr) == (2, True)


def test_why_a_worker_cannot_start_is_one_line(tmp_path: Path) -> None:
    where = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    result = run_tidegate("serve", "--bundles", str(tmp_path / "absent"), *where, *FLAGS)
    assert result.returncode == 2
    assert result.stderr == f"tidegate: --bundles: {tmp_path / 'absent'} is not a directory\n"
