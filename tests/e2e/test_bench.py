"""`tidegate bench` against a real server, over every interface."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tests.certificates import Authority
from tests.servers import COMMAND, RunningServer, bare_environment, serving
from tidegate.cli import app
from tidegate.client import Client

GUIDE = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
SHORT = ("--warmup", "0.05", "--seconds", "0.3", "--sessions", "6")
FEW = ("--max-requests", "50", "--warmup", "0", "--seconds", "100")
LONGER = ("0.3", "3", "30")
"""Seconds: on a loaded machine no request may begin within the first of them."""

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(bundles)
    write_tiny_bundle(bundles, version="2", cell="gru")
    write_tiny_forecast_bundle(bundles)
    write_tiny_stream_bundle(bundles)
    with serving(bundles) as running:
        yield running


def where(server: RunningServer) -> tuple[str, ...]:
    return ("--server", server.grpc, "--http", server.http.removeprefix("http://"))


def run(server: RunningServer, *arguments: str) -> Result:
    environment = {"TIDEGATE_SERVER": None, "COLUMNS": "200"}
    return CliRunner().invoke(app, ["bench", *arguments, *where(server)], env=environment)


def has_requests(document: dict[str, Any]) -> bool:
    return bool(document["requests"])


def measured(
    server: RunningServer, *arguments: str, is_enough: Callable[[dict[str, Any]], bool] = has_requests
) -> dict[str, Any]:
    """Measure for longer and longer, until there is enough to look at."""
    for seconds in LONGER:
        result = run(server, *SHORT, "--seconds", seconds, *arguments, "--json")
        assert result.exit_code == 0, result.output
        document: dict[str, Any] = json.loads(result.stdout)
        assert document["errors"] == {}
        with Client(server.grpc) as client:
            assert list(client.sessions()) == [], "it closes what it has opened"
        if is_enough(document):
            return document
    raise AssertionError(f"{document['requests']} requests in {seconds} s")


@pytest.mark.parametrize("model", ["tiny", "tiny-forecast", "tiny-stream"])
@pytest.mark.parametrize("interface", ["stream", "unary", "columnar", "http", "websocket", "predict"])
def test_every_interface_is_measured_for_every_task(server: RunningServer, interface: str, model: str) -> None:
    arguments = (model, "-i", interface, "--chunk", "2-5")
    document = measured(server, *arguments, is_enough=lambda told: has_requests(told) and told["server"]["steps"] > 0)
    assert document["interface"] == interface
    assert document["requests"] > 0
    assert document["steps"] >= 2 * document["requests"]
    latency = document["latency_ms"]["2-5"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]
    assert document["server"]["rows_per_run"] >= 1
    assert document["server"]["steps"] > 0


def test_generations_tell_their_first_token(server: RunningServer) -> None:
    document = measured(server, "tiny", "-i", "generate", "--chunk", "3", "--max-tokens", "8")
    whole, first = document["latency_ms"]["3"], document["latency_ms"]["first token"]
    assert whole["count"] == first["count"]
    assert first["p50"] < whole["p50"]
    assert document["steps"] == 11 * document["requests"]


def test_a_columnar_message_carries_the_batch(server: RunningServer) -> None:
    document = measured(server, "tiny", "-i", "columnar", "--batch", "3")
    assert document["steps"] == 3 * document["requests"]


def test_a_predict_call_carries_the_batch(server: RunningServer) -> None:
    document = measured(server, "tiny", "-i", "predict", "--batch", "4", "--chunk", "5", "--version", "1")
    assert (document["version"], document["steps"]) == ("1", 20 * document["requests"])


@pytest.mark.parametrize("arrivals", ["even", "poisson"])
@pytest.mark.parametrize("interface", ["stream", "http"])
def test_an_open_loop_sends_what_is_due(server: RunningServer, interface: str, arrivals: str) -> None:
    document = measured(server, "tiny", "-i", interface, "--rate", "100", "--arrivals", arrivals)
    sent = document["latency_ms"]["1"]["count"]
    assert document["send_lag_ms"]["count"] == sent
    if arrivals == "even":
        assert sent + document["unsent"] + document["unfinished"] in {29, 30, 31}


def test_prompts_are_pushed_beside_the_steps(server: RunningServer) -> None:
    arguments = ("--prompt-sessions", "2", "--prompt-length", "100", "--chunk", "1:9,4:1")
    document = measured(server, "tiny", *arguments, is_enough=lambda told: len(told["latency_ms"]) >= 3)
    assert set(document["latency_ms"]) == {"1", "4", "100"}


def test_a_person_reads_a_table_and_sees_a_plot(server: RunningServer, tmp_path: Path) -> None:
    picture = tmp_path / "latency.png"
    result = run(server, "tiny", *SHORT, "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "p99.9" in result.stdout
    assert "tiny/2 over stream, 6 sessions, closed loop" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_it_ends_after_the_requests_that_it_may_send(server: RunningServer) -> None:
    document = measured(server, "tiny", *FEW)
    assert document["latency_ms"]["1"]["count"] == 50
    assert document["seconds"] < 100


def test_it_loads_a_server_of_tls_and_one_at_a_unix_socket(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    authority = Authority(tmp_path)
    pair, client = authority.sign("/CN=server", "server"), authority.sign("/CN=ann", "client")
    ca = str(authority.own.certificate)
    tls = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--tls-client-ca", ca)
    shown = ("--ca", ca, "--client-cert", str(client.certificate), "--client-key", str(client.key))
    sockets = ("--http", f"unix:{tmp_path}/http", "--grpc", f"unix:{tmp_path}/grpc")
    for flags, options in ((tls, shown), (sockets, ())):
        with serving(tmp_path / "bundles", *flags) as server:
            for interface in ("stream", "http", "websocket"):
                result = run(server, "tiny", "-i", interface, *FEW, *options, "--json")
                assert result.exit_code == 0, result.output
                document = json.loads(result.stdout)
                assert (document["latency_ms"]["1"]["count"], document["errors"]) == (50, {})
                assert document["server"] is not None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("nope",), "nope"),
        (("tiny", "-i", "http", "--http", NOBODY), "--http"),
        (("tiny-forecast", "-i", "generate"), "values"),
        (("tiny", "-i", "predict", "--chunk", "5000000"), "at most 4194304"),
    ],
)
def test_what_can_never_work_is_one_line_at_once(server: RunningServer, arguments: tuple[str, ...], why: str) -> None:
    environment = {"TIDEGATE_SERVER": None}
    result = CliRunner().invoke(app, ["bench", *where(server), *arguments], env=environment)
    assert result.exit_code == 1
    assert why in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--batch", "2"), "--batch: a message of stream carries one; columnar and predict carry many"),
        (("--rate", "0"), "--rate: must be above 0"),
        (("--seconds", "0"), "--seconds: must be above 0"),
        (("--chunk", "x"), "--chunk: 'x' is not LENGTH, LENGTH-LENGTH or either with :WEIGHT"),
        (("--arrivals", "even"), "--arrivals means nothing without --rate"),
        (("--prompt-length", "9"), "--prompt-length means nothing without --prompt-sessions"),
        (("--max-tokens", "9"), "--max-tokens means nothing without --interface generate"),
    ],
)
def test_wrong_usage_is_told_before_any_server_is_asked(arguments: tuple[str, ...], line: str) -> None:
    result = CliRunner().invoke(app, ["bench", "tiny", "--server", NOBODY, *arguments])
    assert (result.exit_code, result.stderr) == (2, f"tidegate: {line}\n")


@pytest.mark.parametrize("command", re.findall(r"^\$ tidegate (bench .*)$", GUIDE, re.MULTILINE))
def test_the_commands_of_the_guide_are_ready_to_go(command: str) -> None:
    result = CliRunner().invoke(app, [*shlex.split(command), "--server", NOBODY])
    assert "no server answers" in result.stderr


def test_the_guide_names_every_option() -> None:
    verbs: Any = typer.main.get_command(app)
    parameters = verbs.get_command(None, "bench").params
    options = {option for parameter in parameters for option in parameter.opts if option.startswith("--")}
    assert options == set(re.findall(r"--[a-z][a-z-]*", GUIDE))


def test_the_guide_names_every_key(server: RunningServer) -> None:
    table = GUIDE[GUIDE.index("| key |") :]
    named = {key for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert named == measured(server, "tiny").keys()


def test_without_matplotlib_a_plot_is_refused_before_the_load() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from tidegate.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", "tiny", "--server", NOBODY, "--plot", "x.png"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == 2
    assert result.stderr == "tidegate: --plot needs matplotlib: pip install matplotlib, or the extra tidegate[train]\n"


def test_interrupted_it_prints_what_was_measured(server: RunningServer) -> None:
    """Its progress, on a terminal, says when there is something to print."""
    terminal, its_end = os.openpty()
    command = [*COMMAND, "bench", "tiny", *where(server), "--sessions", "3", "--warmup", "0", "--seconds", "1000"]
    environment = {**bare_environment(), "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its_end, text=True, env=environment) as process:
        os.close(its_end)
        shown = b""
        while b" requests, 0 errors" not in shown:
            shown += os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        printed = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 130
    assert "tiny/2 over stream, 3 sessions, closed loop" in printed
    with Client(server.grpc) as client:
        assert list(client.sessions()) == []
