"""What a smaller graph costs and gains, measured beside the graph that it was made from, and told on its card.

Knows clocks, random inputs and held-out sequences; nothing of how a graph is made smaller.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

from tidegate.bundle import BATCH, CARD, Bundle, Json, Manifest
from tidegate.replay import Array, GraphRunner, Tensors, random_inputs
from tidegate_export.held_out import HeldOut

BATCHES = (1, 64, 256)
_ROUNDS = 5
_CHUNK = 64
"""Steps of a run when held-out sequences are scored: dynamic scales depend on it, nothing else does."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Single steps of `batch` rows on one thread, in rows per second, and the median ratio of interleaved rounds."""

    batch: int
    source: float
    quantized: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Score:
    """Mean surprise on held-out sequences, in the codec's unit: `source`, and `quantized`, which should not be more."""

    unit: str
    data: str
    steps: int
    source: float
    quantized: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured; `score` is None where no held-out data is at hand, and `unscored` says why."""

    bytes_source: int
    bytes_quantized: int
    error: float
    speeds: tuple[Speed, ...]
    score: Score | None
    unscored: str = ""

    def as_json(self) -> dict[str, Json]:
        return asdict(self)


class Pair:
    """A bundle's graph and the one made from it, each with its manifest (states may have another dtype)."""

    def __init__(self, source: Bundle, graph: bytes, manifest: Manifest) -> None:
        self.source = GraphRunner(source.graph, source.manifest)
        self.quantized = GraphRunner(graph, manifest)

    @property
    def both(self) -> tuple[GraphRunner, GraphRunner]:
        return self.source, self.quantized


def relative_error(pair: Pair, *, steps: int = 64, rows: int = 4) -> float:
    """Root mean square of the outputs' difference over that of the outputs' variation, on random sequences."""
    inputs = random_inputs(pair.source.manifest, rows, steps, np.random.default_rng(0))
    rows_alone = [pair.source.row(inputs, pair.source.manifest.sources, row) for row in range(rows)]
    if not pair.source.manifest.is_batchable:
        rows_alone = [inputs]
    worst = 0.0
    for spec in pair.source.manifest.outputs:
        expected, found = (
            np.concatenate([runner.walk(row, [steps]).outputs[spec.name].ravel() for row in rows_alone])
            for runner in pair.both
        )
        worst = max(worst, _relative(expected, found))
    return worst


def speeds(pair: Pair, seconds: float) -> tuple[Speed, ...]:
    """Measure rows per second, each graph `seconds` a round, in turns; a graph without a batch axis only alone."""
    batches = BATCHES if pair.source.manifest.is_batchable else BATCHES[:1]
    return tuple(_speed(pair, batch, seconds) for batch in batches)


def score(pair: Pair, data: HeldOut, surprise: str, unit: str) -> Score:
    """Score `data` with both graphs, every sequence alone from the initial state to its end."""
    source, quantized = (_mean_surprise(runner, data, surprise) for runner in pair.both)
    return Score(unit, data.told, sum(map(len, data.sequences)), source, quantized)


def _relative(expected: Array, found: Array) -> float:
    x, y = expected.astype(np.float64), found.astype(np.float64)
    return float(np.sqrt(np.mean((x - y) ** 2)) / max(float(np.std(x)), 1e-12))


def _speed(pair: Pair, batch: int, seconds: float) -> Speed:
    runs = [_steps(runner, batch) for runner in pair.both]
    for each in runs:
        _rate(each, seconds / 5)
    rounds = [tuple(_rate(each, seconds) * batch for each in runs) for _ in range(_ROUNDS)]
    source, quantized = (median(column) for column in zip(*rounds, strict=True))
    return Speed(batch, round(source), round(quantized), median(after / before for before, after in rounds))


def _steps(runner: GraphRunner, batch: int) -> Iterator[None]:
    """Step `batch` rows for ever, states fed back."""
    inputs = random_inputs(runner.manifest, batch, 1, np.random.default_rng(0))
    states = runner.initial(batch)
    while True:
        states = runner.run(inputs, states).states
        yield


def _rate(steps: Iterator[None], seconds: float) -> float:
    begin = time.perf_counter()
    count = 0
    while (now := time.perf_counter()) < begin + seconds or not count:
        next(steps)
        count += 1
    return count / (now - begin)


def _mean_surprise(runner: GraphRunner, data: HeldOut, surprise: str) -> float:
    (spec,) = runner.manifest.inputs
    assert spec.axes[0] == BATCH
    total = sum(
        float(part.sum(dtype=np.float64))
        for sequence in data.sequences
        for part in _surprises(runner, {spec.name: sequence[None]}, len(sequence), surprise)
    )
    return total / sum(map(len, data.sequences))


def _surprises(runner: GraphRunner, inputs: Tensors, steps: int, surprise: str) -> Iterator[Array]:
    states = runner.initial(1)
    for start in range(0, steps, _CHUNK):
        result = runner.run(runner.cut(inputs, start, min(start + _CHUNK, steps)), states)
        states = result.states
        yield result.outputs[surprise]


_DONE = {
    "static": "int8 weights and int8 activations with fixed scales (LSTM layers whose inputs have certain bounds)",
    "dynamic": "int8 weights and int8 activations whose scales are taken anew in every run",
    "weight-only": "int8 weights, turned back into fp32 when the model is loaded",
    "fp16": "fp16 weights, activations and states",
}


def quantized_card(manifest: Manifest, source: Bundle, figures: Figures) -> str:
    """Return the Markdown of `card.md`: figures first, then the source's own card."""
    origin = f"{source.manifest.name}, version {source.manifest.version}"
    method = manifest.provenance["quantization"]["method"]
    sections = [
        [f"# {manifest.name}, version {manifest.version}", "", f"{origin}, made smaller: {_DONE[method]}."],
        ["## What became of it", "", *_facts(manifest, source)],
        ["## Figures", "", *_figures(figures)],
        ["## Checks", "", *_checks(manifest)],
        [f"# Card of {origin}", "", "Figures and checks below are the source's.", "", *_source_card(source)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _facts(manifest: Manifest, source: Bundle) -> Iterator[str]:
    quantization = manifest.provenance["quantization"]
    yield f"- Method: {quantization['method']}"
    yield "- Operators that hold weights: " + ", ".join(
        f"{count} {name}" for name, count in quantization["operators"].items()
    )
    yield f"- Source: SHA-256 {source.sha256} of its manifest"
    yield f"- State of a session: {manifest.state_bytes:,} bytes"


def _figures(figures: Figures) -> Iterator[str]:
    yield "| | source | this | |"
    yield "| --- | ---: | ---: | ---: |"
    share = figures.bytes_quantized / figures.bytes_source
    yield f"| graph, bytes | {figures.bytes_source:,} | {figures.bytes_quantized:,} | {share:.2f} × |"
    for speed in figures.speeds:
        rates = f"{speed.source:,.0f} | {speed.quantized:,.0f} | {speed.ratio:.2f} ×"
        yield f"| single steps, rows/s at batch {speed.batch} | {rates} |"
    score = figures.score
    if score is not None:
        change = score.quantized - score.source
        yield f"| held-out {score.unit} per step | {score.source:.4f} | {score.quantized:.4f} | {change:+.4f} |"
    yield ""
    yield (
        f"Rates: onnxruntime alone, one CPU thread, the machine that wrote this. Outputs differ from the source's by "
        f"{figures.error:.2%} of their variation (root mean square, random input)."
    )
    if score is not None:
        yield f"Held-out: {score.data}; {score.steps:,} steps."
    else:
        yield f"Held-out figures were not taken: {figures.unscored}."


def _checks(manifest: Manifest) -> Iterator[str]:
    proof = manifest.proof
    assert proof is not None
    yield (
        f"- Streaming proof: {proof.cases} comparisons in {proof.runtime}, worst |Δ| - 1e-4·|x| = "
        f"{max(proof.max_error, 0):.1e}, tolerance {proof.tolerance:g}"
    )
    if proof.tolerance > 1e-5:
        yield "- Results depend on how a sequence is cut into chunks, by up to that tolerance."
    if manifest.batch_invariant:
        yield "- `batch_invariant` is true: a row's result is its own, whatever its neighbours in a batch."
    else:
        yield (
            "- `batch_invariant` is false: a row's result depends on its neighbours in a batch. The server runs rows "
            "alone unless `allow_batch_dependence` is set, so that the rates above at batch 64 and 256 are not reached."
        )


def _source_card(source: Bundle) -> list[str]:
    """The source's card one level down, without its title and its calls."""
    text = source.files.get(CARD, b"").decode(errors="replace")
    body = text.partition("\n## ")[2].partition("\n## Call")[0]
    return [f"## {body}".rstrip()] if body else ["It has none."]
