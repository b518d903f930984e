"""tritonclient, unmodified, against a server in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import write_tiny_bundle
from tests.e2e.oip.clients import run_code, run_script
from tests.servers import RunningServer, serving
from tidegate.bundle import read_bundle
from tidegate.engine.runner import Runner

ROOT = Path(__file__).parents[2]
SCENARIOS = ["http", "grpc", "http_aio", "grpc_aio", "stream", "across", "batch"]
ROWS, STEPS = 4, 16


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(root)
    return root


@pytest.fixture(scope="module")
def server(bundles: Path) -> Iterator[RunningServer]:
    with serving(bundles) as running:
        yield running


@pytest.fixture(scope="module")
def data(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences, and what the graph says of each."""
    tokens = np.random.default_rng(3).integers(0, 65, (ROWS, STEPS))
    bundle = read_bundle(bundles / "tiny" / "1")
    states: list[Any] = [np.zeros((2, ROWS, 16), np.float32) for _ in bundle.manifest.states]
    outputs, _ = Runner(bundle).run([tokens], states)
    file = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(file, tokens=tokens, logits=outputs["logits"], surprise=outputs["surprise"])
    return file


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stock_clients_pass_unmodified(server: RunningServer, data: Path, scenario: str) -> None:
    run_script("stock.py", scenario, server.http.removeprefix("http://"), server.grpc, str(data))


def test_the_guide_s_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "oip.md").read_text(encoding="utf-8"), re.DOTALL)
    with serving(ROOT / "bundles") as running:
        printed = run_code(example.replace("127.0.0.1:8081", running.grpc))
    assert len(printed.splitlines()) == 3
