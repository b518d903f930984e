"""The streaming proof: a graph gives the same outputs and states however its sequence is cut and batched.

Runs a bundle's graph on random sequences and compares: one chunk, a shorter chunk, random splits, step by step, and
rows of several lengths that meet in changing batches, states gathered and scattered as the server does. Needs numpy and
onnxruntime only, for `tidegate check` runs where there is no PyTorch. How a graph is run is `replay`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tidegate.bundle import BATCH, TIME, Json, Manifest, Proof, read_bundle
from tidegate.codecs import make_codec
from tidegate.codecs.scores import read_scores
from tidegate.errors import BundleError
from tidegate.ort import onnxruntime
from tidegate.replay import (
    Array,
    GraphRunner,
    Result,
    Tensors,
    not_streamable,
    part,
    random_inputs,
    random_lengths,
    stream_together,
)

ABSOLUTE = 1e-5
RELATIVE = 1e-4
"""*Equal* everywhere in tidegate is |Δ| ≤ 1e-5 + 1e-4·|x|: results vary in the last bits with the batch size."""

_LENGTHS = (24, 17, 9, 1)
"""Steps of the sequences that the proof runs: ragged, with a single step among them."""


def prove(graph: bytes, manifest: Manifest, *, seed: int = 0, tolerance: float = ABSOLUTE) -> Proof:
    """Prove that `graph` streams as `manifest` says.

    `tolerance` stands in the place of 1e-5 for graphs that round more coarsely than fp32 (int8, fp16).

    Raises:
        BundleError: It does not; reason NOT_STREAMABLE, or BATCH_DEPENDENT where only the manifest's `batch_invariant`
            is wrong, or BAD_BUNDLE where graph and manifest do not belong together.
    """
    runner = GraphRunner(graph, manifest)
    rng = np.random.default_rng(seed)
    rows = [random_inputs(manifest, 1, steps, rng) for steps in _LENGTHS]
    wholes = [runner.walk(row, [steps]) for row, steps in zip(rows, _LENGTHS, strict=True)]
    _check_shapes(manifest, wholes[0], _LENGTHS[0])
    tally = _Tally(tolerance)
    _check_causal(runner, rows[0], wholes[0], tally)
    for row, steps, whole in zip(rows, _LENGTHS, wholes, strict=True):
        _check_splits(runner, row, steps, whole, tally, rng)
    if manifest.is_batchable and manifest.batch_invariant:
        _check_neighbours(runner, tally, rng)
        _check_batches(runner, rows, wholes, tally, rng)
    return Proof(
        passed=True,
        max_error=tally.max_error,
        tolerance=tolerance,
        cases=tally.cases,
        runtime=f"onnxruntime {onnxruntime.__version__}",
    )


def is_batch_invariant(graph: bytes, manifest: Manifest, *, seed: int = 0, tolerance: float = ABSOLUTE) -> bool:
    """Say whether a row's result is its own, whatever its neighbours; dynamic int8 scales make it false.

    `tolerance` as for `prove`: the last bit of fp16 is no neighbour's doing.
    """
    try:
        _check_neighbours(GraphRunner(graph, manifest), _Tally(tolerance), np.random.default_rng(seed))
    except BundleError as error:
        if error.reason != "BATCH_DEPENDENT":
            raise
        return False
    return True


def check_bundle(path: Path) -> Proof:
    """Verify the bundle in the folder `path`, its codec's file included, and prove anew that it streams, within the
    tolerance that it records.

    Raises:
        BundleError: With the reason.
    """
    bundle = read_bundle(path)
    make_codec(bundle)
    read_scores(bundle)
    assert bundle.manifest.proof is not None  # read_bundle refuses a bundle without one
    return prove(bundle.graph, bundle.manifest, tolerance=bundle.manifest.proof.tolerance)


def check_path(path: str) -> Json:
    """`check_bundle` for `sandbox.run_limited`: of a path, to what JSON can hold."""
    return check_bundle(Path(path)).model_dump()


@dataclass(slots=True)
class _Tally:
    """What was compared so far."""

    tolerance: float
    cases: int = 0
    max_error: float = -ABSOLUTE

    def differs(self, expected: Result, found: Result) -> str | None:
        """Compare; return what differs by more than the tolerance, None where nothing does."""
        self.cases += 1
        for kind, left, right in (
            ("output", expected.outputs, found.outputs),
            ("state", expected.states, found.states),
        ):
            for name, values in left.items():
                error = excess(values, right[name])
                if error > self.tolerance:
                    return f"{kind} {name} differs by {_largest(values, right[name]):.3g}"
                self.max_error = max(self.max_error, error)
        return None


def excess(expected: Array, found: Array) -> float:
    """Return the largest |Δ| - 1e-4·|x|, equal up to 1e-5; infinite where shapes or infinities differ or NaN is."""
    if expected.shape != found.shape:
        return float("inf")
    x, y = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.where(x == y, 0.0, np.abs(x - y)) - RELATIVE * np.abs(np.where(np.isfinite(x), x, 0.0))
    return float(np.nan_to_num(error, nan=np.inf, posinf=np.inf).max(initial=-ABSOLUTE))


def _check_shapes(manifest: Manifest, result: Result, steps: int) -> None:
    sizes: dict[str | int, int] = {BATCH: 1, TIME: steps}
    declared = [(spec.name, spec.axes, result.outputs[spec.name]) for spec in manifest.outputs]
    declared += [(state.output, state.axes, result.states[state.input]) for state in manifest.states]
    for name, axes, array in declared:
        wanted = tuple(sizes.get(axis, axis) for axis in axes)
        # A label other than batch and time is an axis of any size.
        if len(wanted) != array.ndim or any(
            isinstance(want, int) and want != size for want, size in zip(wanted, array.shape, strict=True)
        ):
            raise BundleError(f"{name} has shape {array.shape} for 1 row of {steps} steps, the manifest says {axes}")


def _check_causal(runner: GraphRunner, row: Tensors, whole: Result, tally: _Tally) -> None:
    """Cut later steps off: outputs of the steps before must not change."""
    stop = _LENGTHS[0] // 2
    per_step = [spec for spec in runner.manifest.outputs if spec.time_axis is not None]
    before = {spec.name: part(whole.outputs[spec.name], spec.time_axis, 0, stop) for spec in per_step}
    shorter = runner.walk(runner.cut(row, 0, stop), [stop])
    found = tally.differs(Result(before, {}), Result({name: shorter.outputs[name] for name in before}, {}))
    if found:
        raise not_streamable(
            f"{found} when later steps are cut off: it looks ahead (bidirectional, or a mean over all steps)"
        )


def _check_splits(
    runner: GraphRunner, row: Tensors, steps: int, whole: Result, tally: _Tally, rng: np.random.Generator
) -> None:
    for lengths in ([1] * steps, *(random_lengths(steps, rng) for _ in range(4))):
        found = tally.differs(whole, runner.walk(row, lengths))
        if found:
            raise not_streamable(f"{found} between one chunk and several: a memory that is not among the states")


def _check_neighbours(runner: GraphRunner, tally: _Tally, rng: np.random.Generator) -> None:
    """Give a row other neighbours, ten times as large: its result must not change."""
    inputs, steps = runner.manifest.sources, _LENGTHS[0]
    row = random_inputs(runner.manifest, 1, steps, rng)
    alone = runner.walk(row, [steps])
    for scale in (1, 10):
        others = _scaled(random_inputs(runner.manifest, 3, steps, rng), scale)
        together = runner.walk(runner.stack([row, others], inputs), [steps])
        found = tally.differs(alone, runner.row_of(together, 0))
        if found:
            raise BundleError(f"{found} with the row's neighbours in a batch", reason="BATCH_DEPENDENT")


def _check_batches(
    runner: GraphRunner, rows: Sequence[Tensors], wholes: Sequence[Result], tally: _Tally, rng: np.random.Generator
) -> None:
    for _ in range(4):
        for whole, streamed in zip(wholes, stream_together(runner, rows, _LENGTHS, rng), strict=True):
            found = tally.differs(whole, streamed)
            if found:
                raise not_streamable(f"{found} between a row alone and in changing batches")


def _scaled(inputs: Tensors, scale: int) -> Tensors:
    return {
        name: array * array.dtype.type(scale) if array.dtype.kind == "f" else array for name, array in inputs.items()
    }


def _largest(expected: Array, found: Array) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max(initial=0.0))
