"""perf_analyzer, unmodified, against the bundles that are served by default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.oip.clients import run_perf_analyzer
from tests.servers import RunningServer, serving

BUNDLES = Path(__file__).parents[2] / "bundles"

# Short windows, and the second like enough to the first: what is measured here is that it works.
SHORT = ("--measurement-mode=count_windows", "--measurement-request-count=40", "-p", "300", "-r", "3", "-s", "999")
# Its random integers are no tokens of a vocabulary.
SHAPES = {"shakespeare-lstm": "--shape=tokens:1", "load-lstm": "--shape=values:1,7"}
INPUTS = {"shakespeare-lstm": "--input-data=zero", "load-lstm": "--input-data=random"}
WAYS = {"http": ("-i", "http"), "grpc": ("-i", "grpc"), "stream": ("-i", "grpc", "--streaming")}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(BUNDLES) as running:
        yield running


@pytest.fixture(scope="module")
def stateless() -> Iterator[RunningServer]:
    with serving(BUNDLES, "--no-sequences") as running:
        yield running


def run(server: RunningServer, model: str, way: str, *more: str, inputs: str = "") -> str:
    url = server.http.removeprefix("http://") if way == "http" else server.grpc
    what = ("-m", model, SHAPES[model], inputs or INPUTS[model])
    return run_perf_analyzer(*what, "-u", url, *WAYS[way], *SHORT, *more)


def measured(report: str, name: str) -> float:
    found = re.search(rf"{name}: ([0-9.]+)", report)
    assert found is not None, report
    return float(found[1])


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_sequences(server: RunningServer, way: str, model: str) -> None:
    report = run(server, model, way, "--concurrency-range=4")
    assert measured(report, "Throughput") > 0
    assert measured(report, "Sequence count") > 0
    assert measured(report, "Successful request count") > 0, "the server's statistics are read"


@pytest.mark.parametrize("way", WAYS)
def test_sequences_of_a_rate_by_ids_that_are_used_again(server: RunningServer, way: str) -> None:
    more = ("--request-rate-range=80", "--num-of-sequences=3", "--sequence-id-range=1:4", "--sequence-length=5")
    report = run(server, "shakespeare-lstm", way, *more)
    assert measured(report, "Sequence count") > 0


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_without_sequences(stateless: RunningServer, way: str, model: str) -> None:
    report = run(stateless, model, way, "--concurrency-range=4")
    assert measured(report, "Throughput") > 0
    assert "Sequence count" not in report


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_batches_without_sequences(stateless: RunningServer, way: str) -> None:
    report = run(stateless, "load-lstm", way, "-b", "8")
    assert measured(report, "Batch size") == 8
    assert measured(report, "Inference count") > measured(report, "Successful request count")


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_compressed_and_in_json(server: RunningServer, way: str) -> None:
    more = {"http": ("--input-tensor-format=json", "--output-tensor-format=json")}
    report = run(server, "load-lstm", way, *more.get(way, ("--grpc-compression-algorithm=gzip",)))
    assert measured(report, "Throughput") > 0


def test_real_tokens_from_a_file(server: RunningServer, tmp_path: Path) -> None:
    steps = [{"tokens": {"content": [token], "shape": [1]}} for token in (20, 33, 47, 5, 1)]
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"data": [steps, steps[:3]]}))
    report = run(server, "shakespeare-lstm", "stream", inputs=f"--input-data={file}")
    assert measured(report, "Throughput") > 0
