"""The life of a server process: how it refuses to start, reloads, drains and stops."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.bundles import write_tiny_bundle
from tests.servers import RunningServer, run_tidegate, serving
from tidegate.api import GeneratedToken, GenerationDone
from tidegate.client import Client, Retry
from tidegate.errors import TidegateError, UnavailableError

ENDLESS = 100_000
"""Tokens: seconds of work, which no test waits for."""


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    root = tmp_path / "bundles"
    write_tiny_bundle(root)
    return root


def readiness(server: RunningServer) -> tuple[int, str]:
    reply = httpx.get(f"{server.http}/readyz")
    return reply.status_code, reply.json()["status"]


def refused(*flags: str, **variables: str) -> str:
    """Start a server that must refuse to; return its one line."""
    result = run_tidegate("serve", *flags, **variables)
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("tidegate: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_port_in_use_is_told_by_its_address(bundles: Path, transport: str) -> None:
    other = {"http": "grpc", "grpc": "http"}[transport]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused("--bundles", str(bundles), f"--{transport}", address, f"--{other}", "127.0.0.1:0")
    assert address in line
    assert "in use" in line


def test_two_servers_do_not_share_a_grpc_port(bundles: Path) -> None:
    with serving(bundles) as first:
        line = refused("--bundles", str(bundles), "--http", "127.0.0.1:0", "--grpc", first.grpc)
    assert first.grpc in line


def test_a_provider_that_is_not_there_is_fatal(bundles: Path) -> None:
    flags = ("--bundles", str(bundles), "--provider", "cuda", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    # Where onnxruntime is built for CUDA, there is no device for it to see.
    assert "provider cuda" in refused(*flags, CUDA_VISIBLE_DEVICES="")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert refused("--bundles", str(tmp_path / "absent")).endswith("absent is not a directory")


def test_a_bad_setting_is_named_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.toml"
    file.write_text("max_row = 3\n")
    told = refused("--config", str(file))
    assert told.startswith(f"tidegate: {file}: max_row: no such setting: did you mean 'max_rows'? ")
    assert refused(TIDEGATE_STORE="sqlit").startswith("tidegate: TIDEGATE_STORE: 'sqlit' is not a store")


def test_a_corrupt_bundle_is_told_and_the_others_serve(bundles: Path) -> None:
    broken = write_tiny_bundle(bundles, "broken")
    (broken / "model.onnx").write_bytes(b"half")
    with serving(bundles) as server, Client(server.grpc) as client:
        assert [model.name for model in client.models()] == ["tiny"]
        assert client.predict("tiny", ["Hello"]).predictions[0].length == 5
    assert any("broken/1" in event["event"] and "checksum" in event["event"] for event in server.events)


def test_readiness_is_true_only_while_requests_are_welcome(bundles: Path) -> None:
    with serving(bundles) as server, Client(server.grpc) as client:
        assert readiness(server) == (200, "ready")
        events = client.generate("tiny", "A", max_tokens=ENDLESS)
        assert isinstance(next(events), GeneratedToken)
        server.tell(signal.SIGTERM)
        server.wait_for("draining")
        assert readiness(server) == (503, "draining")
        with pytest.raises(UnavailableError) as caught:
            client.predict("tiny", ["A"])
        assert caught.value.reason == "DRAINING"


def test_sigterm_lets_a_running_generation_finish(bundles: Path) -> None:
    with serving(bundles) as server, Client(server.grpc) as client:
        events = client.generate("tiny", "A", max_tokens=2_000)
        first = next(events)
        server.tell(signal.SIGTERM)
        tokens = [first, *events]
        assert server.wait() == 0
    assert isinstance(tokens[-1], GenerationDone)
    assert tokens[-1].finish_reason == "length"
    assert len(tokens) == 2_001
    assert "stopped" in [event["event"] for event in server.events]


def test_sigterm_ends_an_idle_stream_with_the_reason(bundles: Path) -> None:
    once = Retry(attempts=1)
    with serving(bundles) as server, Client(server.grpc, retry=once) as client, client.open("tiny").stream() as stream:
        assert stream.step("A").position == 1
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
        with pytest.raises(UnavailableError) as caught:
            stream.step("B")
    assert caught.value.reason == "DRAINING"


def test_a_second_signal_stops_at_once(bundles: Path) -> None:
    with serving(bundles, "--drain-timeout", "100") as server, Client(server.grpc) as client:
        events = client.generate("tiny", "A", max_tokens=ENDLESS)
        next(events)
        server.tell(signal.SIGTERM)
        server.wait_for("draining")
        server.tell(signal.SIGTERM)
        server.wait_for("drain cut short: remaining requests are cancelled")
        with pytest.raises(TidegateError):
            list(events)
        assert server.wait() == 0


def test_a_drain_is_bounded(bundles: Path) -> None:
    with serving(bundles, "--drain-timeout", "0") as server, Client(server.grpc) as client:
        events = client.generate("tiny", "A", max_tokens=ENDLESS)
        next(events)
        server.tell(signal.SIGINT)
        server.wait_for("drain cut short: remaining requests are cancelled")
        with pytest.raises(TidegateError):
            list(events)
        assert server.wait() == 0


def test_sighup_takes_up_a_new_version_and_sessions_stay_on_theirs(bundles: Path) -> None:
    with serving(bundles) as server, Client(server.grpc) as client:
        session = client.open("tiny")
        session.step("Hel")
        write_tiny_bundle(bundles, version="2", seed=1)
        server.tell(signal.SIGHUP)
        assert server.wait_for("reloaded")["loaded"] == ["tiny/2"]
        assert client.model("tiny").version == "2"
        assert session.step("lo").position == 5
        assert session.refresh().version == "1"


def test_a_reload_that_fails_disturbs_nobody(bundles: Path) -> None:
    with serving(bundles) as server, Client(server.grpc) as client:
        bundles.rename(bundles.with_name("elsewhere"))
        server.tell(signal.SIGHUP)
        assert "No such file or directory" in server.wait_for("reload failed")["error"]
        assert client.predict("tiny", ["Hello"]).predictions[0].length == 5


def test_metrics_tell_of_runs_and_of_sessions(bundles: Path) -> None:
    with serving(bundles) as server, Client(server.grpc) as client:
        with client.open("tiny") as session:
            session.step("Hello")
        lines = httpx.get(f"{server.http}/metrics").text.splitlines()
    assert 'tidegate_steps_total{kind="step",model="tiny",version="1"} 5.0' in lines
    assert 'tidegate_requests_total{interface="grpc",method="Step",outcome="ok"} 1.0' in lines
    assert 'tidegate_run_rows_bucket{le="1.0",model="tiny",version="1"} 1.0' in lines
    assert 'tidegate_sessions_ended_total{reason="SESSION_CLOSED"} 1.0' in lines
    assert 'tidegate_sessions{tier="ephemeral"} 0.0' in lines
