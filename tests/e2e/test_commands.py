"""The verbs that talk to a server, against a real one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.bundles import QUANTILES, VOCABULARY, write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tests.servers import COMMAND, RunningServer, bare_environment, serving
from tidegate.cli import app
from tidegate.client import Client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(bundles)
    write_tiny_bundle(bundles, version="2", cell="gru")
    write_tiny_forecast_bundle(bundles)
    write_tiny_stream_bundle(bundles)
    with serving(bundles) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.grpc) as client:
        yield client


def run(server: RunningServer, *arguments: str, stdin: str | None = None) -> Result:
    # The variable names the server, as in a shell profile.
    return CliRunner().invoke(app, arguments, input=stdin, env={"TIDEGATE_SERVER": server.grpc, "COLUMNS": "200"})


def printed(server: RunningServer, *arguments: str, stdin: str | None = None) -> str:
    result = run(server, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def failure(server: RunningServer, *arguments: str) -> str:
    result = run(server, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("tidegate: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("tidegate: ").rstrip()


def test_predict_takes_text_files_standard_input_and_tokens(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("To be")
    tokens = ",".join(str(VOCABULARY.index(character)) for character in "To be")
    documents = [
        json.loads(printed(server, "predict", "tiny", *arguments, "--json", stdin="To be"))
        for arguments in (
            ("--text", "To be"),
            ("--file", str(file)),
            ("--file", "-"),
            ("--tokens", tokens),
        )
    ]
    assert documents[0]["version"] == "2"
    assert [document["predictions"][0]["length"] for document in documents] == [5, 5, 5, 5]
    assert documents[0] == documents[1] == documents[2] == documents[3]


def test_predict_prints_a_table_of_candidates(server: RunningServer) -> None:
    output = printed(server, "predict", "tiny", "--text", "ab", "--top", "2", "--every-step", "--version", "1")
    assert "tiny/1, sequence 0: 2 steps, surprise" in output
    assert len([line for line in output.splitlines() if line.lstrip().startswith(("1 ", "2 "))]) == 4


def test_predict_reads_the_features_of_a_csv_by_name(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "load.csv"
    file.write_text("time,hour,load\nmon,0,110\nmon,1,120.5\n")
    document = json.loads(printed(server, "predict", "tiny-forecast", "--csv", str(file), "--json"))
    (prediction,) = document["predictions"]
    assert prediction["length"] == 2
    assert prediction["forecast"]["quantiles"] == pytest.approx(QUANTILES)
    assert "0.1" in printed(server, "predict", "tiny-forecast", "--csv", str(file))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("time,load\nmon,1\n", "the model wants the columns load, hour: hour missing"),
        ("load,hour\n1,one\n", "line 2: hour is 'one', not a number"),
        ("load,hour\n1\n", "line 2: hour is None, not a number"),
        ("load,hour\n", "no rows below a header"),
        ("load,hour,load\n1,2,3\n", "the column load is there 2 times: keep one"),
        ("load,hour\n1,2\n1,2,3\n", "line 3: more fields than the header has"),
    ],
)
def test_a_csv_that_does_not_fit_is_told_why(server: RunningServer, tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "load.csv"
    file.write_text(text)
    assert why in failure(server, "predict", "tiny-forecast", "--csv", str(file))


def test_predict_prints_the_shapes_of_tensors(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "two.csv"
    file.write_text("left,right\n1,2\n3,4\n")
    output = printed(server, "predict", "tiny-stream", "--csv", str(file), "--every-step")
    assert "score" in output
    assert "(2, 4)" in output


def test_what_the_server_refuses_is_one_line(server: RunningServer) -> None:
    assert "nope" in failure(server, "predict", "nope", "--text", "a")
    assert "'ü'" in failure(server, "predict", "tiny", "--text", "für")
    assert "tiny-forecast" in failure(server, "generate", "tiny-forecast", "--prompt", "a")


def test_generate_prints_prompt_and_text(server: RunningServer) -> None:
    flags = ("--prompt", "ROMEO:", "--max-tokens", "20", "--seed", "7")
    text = printed(server, "generate", "tiny", *flags)
    document = json.loads(printed(server, "generate", "tiny", *flags, "--json"))
    assert text == f"ROMEO:{document['text']}\n"
    assert (len(document["tokens"]), document["finish_reason"]) == (20, "length")


def test_generate_prints_characters_as_they_come(server: RunningServer) -> None:
    command = [*COMMAND, "generate", "tiny", "--prompt", "A", "--max-tokens", "100000", "--server", server.grpc]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, env=bare_environment()) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"A"
        assert process.poll() is None, "it has not waited for the end"
        process.terminate()


def test_sessions_are_listed_shown_and_closed(server: RunningServer, client: Client) -> None:
    session = client.open("tiny", id="cli-1")
    session.step("abc")
    (listed,) = json.loads(printed(server, "sessions", "list", "--json"))
    assert (listed["id"], listed["model"], listed["version"], listed["position"]) == ("cli-1", "tiny", "2", 3)
    assert listed["created_at"].endswith("Z")
    assert json.loads(printed(server, "sessions", "show", "cli-1", "--json")) == listed
    assert "cli-1" in printed(server, "sessions", "list")
    assert "position" in printed(server, "sessions", "show", "cli-1")
    assert printed(server, "sessions", "close", "cli-1") == ""
    assert printed(server, "sessions", "close", "cli-1") == ""
    assert json.loads(printed(server, "sessions", "list", "--json")) == []
    assert "cli-1" in failure(server, "sessions", "show", "cli-1")
