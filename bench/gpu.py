"""States on a GPU: `make bench-gpu` measures the device arena against copies, the bare runtime and PyTorch.

Writes bench/GPU.md and bench/GPU.json. `--provider cpu` only prints: it shows that everything runs, not how fast.
Needs onnxruntime-gpu in place of onnxruntime, and a torch that sees the GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import gpu_ways as ways
from bench.measure import Rounds, Spread, interleaved
from bench.raw import bundle_of
from tidegate.bundle import Bundle, read_bundle
from tidegate.engine.runner import check_provider
from tidegate.ort import onnxruntime
from tidegate.proof import excess

log = logging.getLogger(__name__)

BARE = "onnxruntime, states bound"
OURS = "device arena"
WAYS = {
    "onnxruntime, states copied": ways.host_states,
    BARE: ways.bound_states,
    "host arena": ways.host_arena,
    OURS: ways.device_arena,
    "device arena, CUDA graphs": ways.captured,
    "PyTorch": ways.pytorch,
    "PyTorch, compiled": ways.compiled,
}
_OTHER_WEIGHTS = {"PyTorch", "PyTorch, compiled"}
_WARMUP_RUNS = 5
_RESULTS = Path(__file__).parent


def prepare(bundle: Bundle, provider: str, rows: int, names: Sequence[str]) -> dict[str, ways.Way]:
    """Build the ways; one that cannot be built is left out, and said.

    Raises:
        SystemExit: Two ways that should give the same logits do not.
    """
    built: dict[str, ways.Way] = {}
    for name in names:
        way = WAYS[name](bundle, provider, rows)
        if way is not None:
            built[name] = way
    check(bundle, built, rows)
    return built


def check(bundle: Bundle, built: Mapping[str, ways.Way], rows: int) -> None:
    """Step each a few times; those with the bundle's weights must agree with the bundle on the CPU."""
    random = np.random.default_rng(0)
    size = int(bundle.manifest.output("logits").axes[-1])
    expected = ways.host_states(bundle, "cpu", rows)
    assert bundle.manifest.proof is not None  # the bundle was read
    tolerance = bundle.manifest.proof.tolerance
    for _ in range(_WARMUP_RUNS):
        tokens = random.integers(0, size, (rows, 1))
        logits = expected(tokens)
        for name, way in built.items():
            found = way(tokens)
            if name not in _OTHER_WEIGHTS and excess(logits, found) > tolerance:
                raise SystemExit(f"{name} at {rows} rows: logits differ from the CPU's by {excess(logits, found):.1e}")


def seconds_per_run(way: ways.Way, size: int, rows: int, length: int, seconds: float) -> float:
    """Return the median of the runs that fit into ``seconds``."""
    tokens = np.random.default_rng(1).integers(0, size, (rows, length))
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        way(tokens)
        durations.append(time.perf_counter() - begin)
    return float(np.median(durations))


def measure(bundle: Bundle, built: Mapping[str, ways.Way], rows: int, asked: argparse.Namespace) -> Rounds[float]:
    """Measure the ways in turns."""
    size = int(bundle.manifest.output("logits").axes[-1])
    for way in built.values():  # of this length: compiled once, bound once
        seconds_per_run(way, size, rows, asked.length, asked.seconds / 5)
    return interleaved(
        asked.rounds,
        {name: partial(seconds_per_run, way, size, rows, asked.length, asked.seconds) for name, way in built.items()},
    )


def table(results: Mapping[int, Rounds[float]], length: int) -> str:
    """Return a table of microseconds per run, and of steps per second against the bare runtime."""
    lines = ["| rows | way | µs per run (least–greatest) | steps/s | against the bare runtime |", "|" + " --- |" * 5]
    for rows, rounds in results.items():
        for name in rounds.names:
            taken = rounds.spread(name, lambda seconds: seconds * 1e6)
            share = f"{rounds.ratio(BARE, name, lambda seconds: seconds).median:.2f}" if BARE in rounds.names else ""
            steps = rows * length / taken.median * 1e6
            lines.append(
                f"| {rows} | {name} | {taken.median:.0f} ({taken.low:.0f}–{taken.high:.0f}) | {steps:,.0f} | {share} |"
            )
    return "\n".join(lines)


def machine(provider: str) -> dict[str, str]:
    """Names and values of what was measured on."""
    return {
        "device": torch.cuda.get_device_name() if provider == "cuda" else platform.processor() or platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "CUDA of torch": str(torch.version.cuda),
        "Python": platform.python_version(),
    }


def write(results: Mapping[int, Rounds[float]], asked: argparse.Namespace) -> None:
    """Write what was measured, for people and for programs."""
    about = machine(asked.provider)
    said = "\n".join(f"- {name}: {value}" for name, value in about.items())
    text = f"# Steps on a GPU\n\n`make bench-gpu`, {asked.model}, {asked.length} step(s) a run.\n\n{said}\n\n"
    (_RESULTS / "GPU.md").write_text(f"{text}{table(results, asked.length)}\n", encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for size, rounds in results.items():
        for name in rounds.names:
            taken: Spread = rounds.spread(name, lambda seconds: seconds)
            rows.append({"rows": size, "way": name, "seconds": taken.median, "spread": [taken.low, taken.high]})
    (_RESULTS / "GPU.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="shakespeare-lstm", help="a bundle of tokens")
    parser.add_argument("--rows", default="1,16,64,256,1024", help="batch sizes")
    parser.add_argument("--length", type=int, default=1, help="steps a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in each round")
    parser.add_argument(
        "--ways", default=";".join(WAYS), help="which to measure: names, or how they begin, with ; between"
    )
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    check_provider(asked.provider)
    bundle = read_bundle(bundle_of(asked.model))
    wanted = tuple(part.strip() for part in asked.ways.split(";"))
    names = [name for name in WAYS if name.startswith(wanted)]
    results = {}
    for rows in map(int, asked.rows.split(",")):
        results[rows] = measure(bundle, prepare(bundle, asked.provider, rows, names), rows, asked)
        sys.stdout.write(table({rows: results[rows]}, asked.length) + "\n")
        sys.stdout.flush()
    if asked.provider == "cuda":
        write(results, asked)


if __name__ == "__main__":
    main()
