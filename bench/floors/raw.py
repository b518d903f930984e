"""onnxruntime alone, on the server's own graph: no session, no protocol. Prints one JSON line and ends.

`steps`      one run a step for a whole batch, its new states fed back: what continuous batching could reach
`sequences`  whole sequences of unequal lengths in the best batches that a hand can make
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tidegate.api import Tensor
from tidegate.bundle import BATCH, TokenCodec, read_bundle
from tidegate.ort import onnxruntime

WARMUP_RUNS = 5
GROUP_SIZES = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Rate:
    """What was reached. ``how`` names the best of several ways; ``seconds_per_call`` is their median."""

    how: str
    steps_per_s: float
    cpu_us_per_step: float
    seconds_per_call: float


class Graph:
    """A loaded bundle of tokens with two-sided states: [layers, batch, width] in and out."""

    def __init__(self, bundle: Path, threads: int) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        found = read_bundle(bundle)
        if not isinstance(found.manifest.codec, TokenCodec):
            raise SystemExit(f"{bundle}: takes no tokens")
        self._session = onnxruntime.InferenceSession(found.graph, settings, ["CPUExecutionProvider"])
        self._states = found.manifest.states
        self._names = [spec.name for spec in found.manifest.outputs] + [spec.output for spec in self._states]
        logits = found.manifest.outputs[0]
        self.vocabulary = int(logits.axes[-1])

    def initial(self, rows: int) -> list[Tensor]:
        """The states of ``rows`` new sessions."""
        shapes = ([rows if axis == BATCH else int(axis) for axis in spec.axes] for spec in self._states)
        return [np.zeros(shape, np.float32) for shape in shapes]

    def run(self, tokens: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        """Run ``tokens`` [rows, steps]; return the new states."""
        feeds = {spec.input: state for spec, state in zip(self._states, states, strict=True)}
        results = self._session.run(self._names, {"tokens": tokens, **feeds})
        return list(results[-len(self._states) :])


def step_batches(graph: Graph, rows: int, length: int) -> Iterator[int]:
    """Step ``rows`` sessions for ever, ``length`` steps a run; yields the steps of each run."""
    random = np.random.default_rng(0)
    states = graph.initial(rows)
    while True:
        states = graph.run(random.integers(0, graph.vocabulary, (rows, length)), states)
        yield rows * length


def in_lockstep(graph: Graph, sequences: Sequence[Tensor]) -> None:
    """All rows side by side; whoever ends leaves, so that nothing is padded."""
    rows = sorted(sequences, key=len, reverse=True)
    states, done = graph.initial(len(rows)), 0
    while rows:
        end = len(rows[-1])
        states = graph.run(np.stack([row[done:end] for row in rows]), states)
        rows = [row for row in rows if len(row) > end]
        states, done = [np.ascontiguousarray(state[:, : len(rows)]) for state in states], end


def in_padded_groups(graph: Graph, sequences: Sequence[Tensor], size: int) -> None:
    """Sorted by length, ``size`` neighbours a run, each padded to the longest of them."""
    rows = sorted(sequences, key=len)
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        tokens = np.zeros((len(group), len(group[-1])), np.int64)
        for padded, row in zip(tokens, group, strict=True):
            padded[: len(row)] = row
        graph.run(tokens, graph.initial(len(group)))


def one_by_one(graph: Graph, sequences: Sequence[Tensor]) -> None:
    for row in sequences:
        graph.run(row[None], graph.initial(1))


def best_batches(graph: Graph, lengths: Sequence[int], seconds: float) -> Rate:
    """The fastest of the ways, each for its share of the time."""
    random = np.random.default_rng(0)
    sequences = [random.integers(0, graph.vocabulary, length) for length in lengths]
    ways: dict[str, Callable[[], None]] = {
        "lockstep": lambda: in_lockstep(graph, sequences),
        "one by one": lambda: one_by_one(graph, sequences),
    }
    for size in GROUP_SIZES:
        ways[f"sorted groups of {size}, padded"] = partial(in_padded_groups, graph, sequences, size)
    rates = [_rate(how, _repeat(way, sum(lengths)), seconds / len(ways)) for how, way in ways.items()]
    return max(rates, key=lambda rate: rate.steps_per_s)


def _repeat(way: Callable[[], None], steps: int) -> Iterator[int]:
    while True:
        way()
        yield steps


def _rate(how: str, runs: Iterator[int], seconds: float) -> Rate:
    """Run for ``seconds`` after a warm-up of at most a fifth of them."""
    _run_for(runs, seconds / 5, at_most=WARMUP_RUNS)
    cpu, begin = _cpu(), time.perf_counter()
    steps, durations = _run_for(runs, seconds)
    elapsed = time.perf_counter() - begin
    return Rate(how, steps / elapsed, (_cpu() - cpu) / steps * 1e6, float(np.median(durations)))


def _run_for(runs: Iterator[int], seconds: float, at_most: int = sys.maxsize) -> tuple[int, list[float]]:
    steps = 0
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end and len(durations) < at_most:
        steps += next(runs)
        durations.append(time.perf_counter() - begin)
    return steps, durations


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "sequences"])
    parser.add_argument("--bundle", type=Path, required=True, help="directory with a manifest.json")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64, help="rows of a run of steps")
    parser.add_argument("--length", type=int, default=1, help="steps of a run of steps")
    parser.add_argument("--lengths", default="", help="of the sequences: 16,25,512")
    asked = parser.parse_args()
    graph = Graph(asked.bundle, asked.threads)
    if asked.what == "steps":
        rate = _rate("one run a step", step_batches(graph, asked.batch, asked.length), asked.seconds)
    else:
        rate = best_batches(graph, [int(length) for length in asked.lengths.split(",")], asked.seconds)
    sys.stdout.write(json.dumps(asdict(rate)) + "\n")


if __name__ == "__main__":
    main()
