"""The streaming proof: a graph gives the same outputs and states however its sequence is cut and batched.

Runs a bundle's graph on random sequences and compares: one chunk, a shorter chunk, random splits, step by step, and
rows of several lengths that meet in changing batches. One sequence is longer than every memory that the graph can have
(`reach` reads that off it), values have several scales, and counters start just below what they are compared with. All
runs go through the engine's runner, arena and codec (`replay`). Needs neither PyTorch nor the package onnx, for
`tidegate check` runs where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tidegate.api import Input, StepOptions
from tidegate.bundle import BATCH, TIME, Bundle, Json, Manifest, Proof, TensorCodec, read_bundle
from tidegate.clock import Clock
from tidegate.codecs import Codec, make_codec
from tidegate.codecs.scores import read_scores
from tidegate.engine.runner import from_graph
from tidegate.errors import BundleError, InvalidInputError
from tidegate.ort import onnxruntime
from tidegate.reach import Reach, analyse
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

REFUSED = "REFUSED_BY_MODEL"
"""The reason where a node refuses the values that it is given."""

_LENGTHS = (24, 17, 9, 1)
"""Steps of the sequences that the proof runs: ragged, with a single step among them."""

_LONG = 256
"""Steps of the long sequence where the graph gives no reason for a longer one."""
_MARGIN = 40
"""Steps that it has beyond the graph's reach."""
_LONG_SECONDS = 20.0
"""Where `_LONG` steps would take longer and the graph gives no reason for them, there are `_SHORTER`."""
_SHORTER = 64
_MOST_SECONDS = 480.0
"""No proof takes over ten minutes: where this part of it would, it is refused."""
_MOST_ELEMENTS = 1 << 28
"""Elements of the long sequence's inputs and outputs: 1 GiB."""
_MARKS = 12
"""Numbers of the graph at which the long sequence is cut, the largest first."""

_NUDGE = 2e-7
"""Some roundings of fp32: a change of the last bits."""
_STRICT = 1e-9
"""As a scale: nothing is divided by it, and nothing recorded."""
_HUGE = 1e30
"""Beyond it a limit is none that values are compared with."""
_NUDGES = 30.0
"""So many times what comes of such a change is still no more than rounding."""

_FAINT = 0.01
"""Where a difference is more than this share of an output's largest value, 1e-5 is no measure of it."""

_SCALES = (1e-3, 30.0, 1e3)
_FAR = (0.0, 1.0, -1.0, 10.0, -10.0, 100.0, -100.0, 1000.0)
"""Values of settings, of which only the default is known."""
_SIGNS = ("zeros", "ones", "positive", "negative")
_WIDE, _WIDEST = 65, 512
"""Rows of the largest batch; up to so many where the graph has such a number."""


def prove(
    graph: bytes,
    manifest: Manifest,
    *,
    seed: int = 0,
    tolerance: float = ABSOLUTE,
    reach: int | None = None,
    codec: Codec | None = None,
    clock: Clock = Clock(),  # noqa: B008 - it holds nothing
) -> Proof:
    """Prove that `graph` streams as `manifest` says.

    Args:
        graph: The content of an ONNX file.
        manifest: What it is to be.
        seed: Of the random sequences.
        tolerance: Stands in the place of 1e-5 for graphs that round more coarsely than fp32 (int8, fp16).
        reach: Steps that no memory outside of the states reaches back more than, as the user says.
        codec: What serves the bundle; of task `stream`, it is made of the manifest.
        clock: What tells how long a sequence would take.

    Raises:
        BundleError: It does not; reason NOT_STREAMABLE, or BATCH_DEPENDENT where only the manifest's `batch_invariant`
            is wrong, or BAD_BUNDLE where graph and manifest do not belong together.
    """
    runner = GraphRunner(graph, manifest)
    rng = np.random.default_rng(seed)
    found = analyse(graph, manifest)
    vocabularies = _vocabularies(runner, found)
    rows = [random_inputs(manifest, 1, steps, rng, vocabularies) for steps in _LENGTHS]
    wholes = [runner.walk(row, [steps]) for row, steps in zip(rows, _LENGTHS, strict=True)]
    _check_shapes(manifest, wholes[0], _LENGTHS[0])
    tally = _Tally(tolerance)
    _check_causal(runner, rows[0], wholes[0], tally)
    for row, steps, whole in zip(rows, _LENGTHS, wholes, strict=True):
        _check_splits(runner, row, steps, whole, tally, rng)
    if manifest.is_batchable and manifest.batch_invariant:
        _check_neighbours(runner, tally, rng, vocabularies, found.marks)
        _check_batches(runner, rows, wholes, tally, rng)
    _check_codec(runner, rows[1], wholes[1], codec, tally)
    _check_values(runner, found, tally, rng, vocabularies)
    _check_settings(runner, found, tally, rng, vocabularies)
    _check_counters(runner, found, tally, rng, vocabularies)
    pace = _Pace.of(runner, rng, vocabularies, clock)
    steps, origin = _check_reach(runner, found, reach, pace, tally, rng, vocabularies)
    return Proof(
        passed=True,
        max_error=tally.max_error,
        tolerance=tolerance,
        cases=tally.cases,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        reach=steps,
        reach_from=origin,
    )


def is_batch_invariant(graph: bytes, manifest: Manifest, *, seed: int = 0, tolerance: float = ABSOLUTE) -> bool:
    """Say whether a row's result is its own, whatever its neighbours; dynamic int8 scales make it false.

    `tolerance` as for `prove`: the last bit of fp16 is no neighbour's doing.
    """
    runner = GraphRunner(graph, manifest)
    found = analyse(graph, manifest)
    vocabularies = _vocabularies(runner, found)
    try:
        _check_neighbours(runner, _Tally(tolerance), np.random.default_rng(seed), vocabularies, found.marks)
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
    codec = make_codec(bundle)
    read_scores(bundle)
    recorded = bundle.manifest.proof
    assert recorded is not None  # read_bundle refuses a bundle without one
    return prove(bundle.graph, bundle.manifest, tolerance=recorded.tolerance, reach=recorded.stated_reach, codec=codec)


def check_path(path: str) -> Json:
    """`check_bundle` for `sandbox.run_limited`: of a path, to what JSON can hold."""
    return check_bundle(Path(path)).model_dump()


@dataclass(slots=True)
class _Tally:
    """What was compared so far."""

    tolerance: float
    cases: int = 0
    max_error: float = -ABSOLUTE

    def differs(self, expected: Result, found: Result, scale: float = 0.0) -> str | None:
        """Compare; return what differs by more than the tolerance, None where nothing does.

        Where values are `scale` times as large as usual, what rounding leaves of their differences is so, too.
        """
        self.cases += 1
        for kind, left, right in (
            ("output", expected.outputs, found.outputs),
            ("state", expected.states, found.states),
        ):
            for name, values in left.items():
                error = excess(values, right[name])
                if scale:
                    error /= max(1.0, scale, _magnitude(values))
                if error > self.tolerance:
                    return f"{kind} {name} differs by {_largest(values, right[name]):.3g}"
                if not scale:
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


def _check_neighbours(
    runner: GraphRunner,
    tally: _Tally,
    rng: np.random.Generator,
    vocabularies: Mapping[str, int],
    marks: Sequence[int],
) -> None:
    """Give a row other neighbours, ten times as large, or many: its result must not change."""
    many = [(3, rows, 1) for rows in (_WIDE - 1, *(mark for mark in marks if _WIDE <= mark <= _WIDEST))]
    inputs = runner.manifest.sources
    for steps, rows, scale in ((_LENGTHS[0], 3, 1), (_LENGTHS[0], 3, 10), *many):
        row = random_inputs(runner.manifest, 1, steps, rng, vocabularies)
        alone = runner.walk(row, [steps])
        others = _scaled(random_inputs(runner.manifest, rows, steps, rng, vocabularies), scale)
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


def _vocabularies(runner: GraphRunner, found: Reach) -> Mapping[str, int]:
    """Return how many ids the inputs take; none where the graph refuses some of those that its tables have."""
    if not found.vocabularies:
        return {}
    plain = random_inputs(runner.manifest, 1, 2, np.random.default_rng(0))
    highest = {name: np.full_like(plain[name], number - 1) for name, number in found.vocabularies.items()}
    try:
        runner.walk(plain | highest, [2])
    except BundleError as error:
        if error.reason != REFUSED:
            raise
        return {}
    return found.vocabularies


# ---- the codec


def _check_codec(runner: GraphRunner, row: Tensors, whole: Result, codec: Codec | None, tally: _Tally) -> None:
    """Send a row as a client does, in two chunks, and read every step of it as a client sees it."""
    manifest = runner.manifest
    if codec is None:
        if not isinstance(manifest.codec, TensorCodec):
            return  # its files are not here
        codec = make_codec(Bundle(Path(manifest.name), manifest, ""))
    if not isinstance(manifest.codec, TensorCodec) or any(spec.time_axis is None for spec in manifest.inputs):
        return  # what it makes of a caller's text or rows has no inverse
    arrays = [from_graph(spec, row[spec.name])[0] for spec in manifest.inputs]
    settings = [from_graph(spec, row[spec.name])[0] for spec in manifest.settings]
    flat = [array.reshape(len(array), -1) for array in arrays]
    steps = len(arrays[0])
    is_tokens = len(flat) == 1 and flat[0].shape[1] == 1 and flat[0].dtype.kind == "i"
    options = StepOptions(every_step=True)
    pool, pieces = runner.pool(1), []
    for start, stop in ((0, steps // 2), (steps // 2, steps)):
        columns = np.concatenate([array[start:stop].astype(np.float64) for array in flat], axis=1)
        source = Input(tokens=flat[0][start:stop, 0].tolist()) if is_tokens else Input(values=columns)
        try:
            encoded = codec.encode(source)
        except InvalidInputError as error:
            raise BundleError(f"the codec refuses what the graph takes: {error.message}") from error
        outputs = runner.serve(pool, [*encoded, *settings])
        pieces.append(codec.cut(outputs, 0, options, is_last=stop == steps))
    told = codec.join(pieces, steps, options).outputs or {}
    expected = {spec.name: from_graph(spec, whole.outputs[spec.name])[0] for spec in manifest.outputs}
    found = {name: array if manifest.output(name).time_axis is not None else array[-1] for name, array in told.items()}
    differs = tally.differs(Result({name: expected[name] for name in found}, {}), Result(found, {}))
    if differs:
        raise not_streamable(f"{differs} between what the graph gives and what the codec tells")


# ---- values


def _check_values(
    runner: GraphRunner, found: Reach, tally: _Tally, rng: np.random.Generator, vocabularies: Mapping[str, int]
) -> None:
    """Run values of other scales and signs, and those that the graph compares with, in one chunk and in several."""
    if not any(spec.dtype.startswith("float") for spec in runner.manifest.inputs):
        return
    kinds: list[str | float] = [*_SIGNS, *_SCALES, *(["landmarks", "landmark steps"] if found.landmarks else [])]
    for kind in kinds:
        steps = _LENGTHS[1] if kind not in {"landmarks", "landmark steps"} else 2 * _LENGTHS[0]
        # What lies so near to a limit that rounding decides is not met twice.
        for attempt in range(2):
            plain = random_inputs(runner.manifest, 1, steps, rng, vocabularies)
            row = plain | {
                spec.name: _values(plain[spec.name], spec.time_axis or 0, kind, found.landmarks, rng)
                for spec in runner.manifest.inputs
                if spec.dtype.startswith("float")
            }
            scale = max(_magnitude(array) for array in row.values() if array.dtype.kind == "f")
            differs = _differs_when_cut(runner, row, steps, tally, rng, scale)
            if differs is None:
                break
            if attempt:
                raise not_streamable(f"{differs} between one chunk and several of {_named(kind)}")


def _check_settings(
    runner: GraphRunner, found: Reach, tally: _Tally, rng: np.random.Generator, vocabularies: Mapping[str, int]
) -> None:
    """Give settings the numbers that the graph compares with, some below and above them, and others far away."""
    specs = [spec for spec in runner.manifest.settings if spec.dtype != "bool"]
    limits = [limit for limit in found.landmarks if abs(limit) < _HUGE] if specs else []
    values = {factor * limit for limit in limits for factor in (0.5, 1, 2)}
    floats = [spec.name for spec in specs if spec.dtype.startswith("float")]
    steps = _LENGTHS[1]
    for names, value in [
        *(([spec.name for spec in specs], value) for value in sorted(values)),
        *((floats, value) for value in _FAR if floats),
    ]:
        row = random_inputs(runner.manifest, 1, steps, rng, vocabularies)
        row |= {name: _near(row[name], value) for name in names}
        differs = _differs_when_cut(runner, row, steps, tally, rng, max(1.0, abs(value)))
        if differs:
            raise not_streamable(f"{differs} between one chunk and several where a setting is {value:g}")


def _values(array: Array, time: int, kind: str | float, landmarks: Sequence[float], rng: np.random.Generator) -> Array:
    if isinstance(kind, float):
        return (array * kind).astype(array.dtype)
    if kind in {"landmarks", "landmark steps"}:
        # Of whole steps, all elements are near one limit.
        shape = array.shape if kind == "landmarks" else tuple(array.shape[: time + 1]) + (1,) * (array.ndim - time - 1)
        limits = np.array([value for value in landmarks if abs(value) < _HUGE] or [0.0])
        chosen = rng.choice(limits, shape) * rng.choice([-1, 1, 1, 1.001, 0.999, 2], shape)
        return np.where(rng.random(shape) < 0.5, chosen, array).astype(array.dtype)
    sign = {"zeros": 0, "ones": 0, "positive": 3, "negative": -3}[kind]
    return (sign * np.abs(array) + (kind == "ones")).astype(array.dtype)


def _named(kind: str | float) -> str:
    return f"values around {kind:g}" if isinstance(kind, float) else f"{kind} as values"


def _differs_when_cut(
    runner: GraphRunner,
    row: Tensors,
    steps: int,
    tally: _Tally,
    rng: np.random.Generator,
    scale: float,
    states: Tensors | None = None,
) -> str | None:
    """Compare one chunk with several; None as well where the graph refuses the values, or has no number for them."""
    try:
        with np.errstate(all="ignore"):
            whole = runner.walk(row, [steps], states)
            if not all(np.isfinite(array).all() for part in (whole.outputs, whole.states) for array in part.values()):
                return None
            for lengths in ([1] * steps, [1, *random_lengths(steps - 1, rng)], [steps - 1, 1]):
                cut = runner.walk(row, lengths, states)
                differs = tally.differs(whole, cut, scale)
                if differs:
                    return differs
                # The scale hides what is no larger than usual. Coarser graphs than fp32 round by the size of what they
                # compute: a change of the last bits does not show in them.
                differs = tally.differs(whole, cut, _STRICT) if tally.tolerance <= ABSOLUTE else None
                if differs and not _is_rounding(runner, row, whole, cut, lengths, rng, states):
                    return differs
    except BundleError as error:
        if error.reason != REFUSED:
            raise
    return None


# ---- counters


def _check_counters(
    runner: GraphRunner, found: Reach, tally: _Tally, rng: np.random.Generator, vocabularies: Mapping[str, int]
) -> None:
    """Begin just below each number that a counter is compared with, and count across it."""
    steps = 12
    first = runner.initial(1)
    for name, limits in found.counters.items():
        plain = random_inputs(runner.manifest, 1, 1, rng, vocabularies)
        begun = _pace_of(runner, plain, name, first)
        for limit in limits:
            # What fades goes slower there than at first.
            there = _pace_of(runner, plain, name, first | {name: _near(first[name], limit)})
            for distance in sorted({sign * 5.5 * pace for pace in (begun, there) for sign in (-1, 1)}):
                states = first | {name: _near(first[name], limit + distance)}
                for attempt in range(2):
                    row = random_inputs(runner.manifest, 1, steps, rng, vocabularies)
                    differs = _differs_when_cut(runner, row, steps, tally, rng, 1.0, states)
                    if differs is None:
                        break
                    if attempt:
                        raise not_streamable(f"{differs} between one chunk and several where {name} reaches {limit:g}")


def _pace_of(runner: GraphRunner, step: Tensors, name: str, states: Tensors) -> float:
    """Return how far a step moves a counter; 0 where nobody can tell."""
    try:
        with np.errstate(all="ignore"):
            after = runner.walk(step, [1], states).states[name]
            moved = after.astype(np.float64) - states[name].astype(np.float64)
    except BundleError as error:
        if error.reason != REFUSED:
            raise
        return 0.0
    return float(np.abs(moved).mean()) if np.isfinite(moved).all() else 0.0


def _near(state: Array, value: float) -> Array:
    if state.dtype.kind in "iu":
        limits = np.iinfo(state.dtype)
        value = min(max(np.floor(value), limits.min), limits.max)
    return np.full(state.shape, value).astype(state.dtype)


# ---- the reach


def _check_reach(
    runner: GraphRunner,
    found: Reach,
    stated: int | None,
    pace: _Pace,
    tally: _Tally,
    rng: np.random.Generator,
    vocabularies: Mapping[str, int],
) -> tuple[int, Literal["graph", "stated"]]:
    """Run a sequence that is longer than every memory of the graph; return how far that is, and who says so."""
    if found.unbounded and stated is None:
        raise not_streamable(
            f"{found.unbounded}, so how far back it reaches cannot be told: --reach N says that it is N steps at most"
        )
    reach: int = found.steps
    origin: Literal["graph", "stated"] = "graph"
    if stated is not None and (found.unbounded or stated > reach or not pace.allows(reach + _MARGIN)):
        reach, origin = stated, "stated"
    if not pace.allows(reach + _MARGIN):
        because = f"as {found.why} say" if origin == "graph" else "as --reach says"
        raise not_streamable(
            f"it may reach {reach:,} steps back ({because}), and to prove that takes over ten minutes or too much "
            "memory: --reach N says that it is N steps at most"
        )
    steps = max(_LONG if pace.seconds(_LONG) < _LONG_SECONDS else _SHORTER, reach + _MARGIN)
    most_ids = max([size for size in vocabularies.values() if size <= 1024], default=0)
    steps = max(steps, most_ids) if pace.allows(most_ids) else steps
    row = random_inputs(runner.manifest, 1, steps, rng, vocabularies)
    steps, whole = _longest(runner, row, steps)
    row = runner.cut(row, 0, steps)
    marks = sorted((mark for mark in found.marks if mark < steps), reverse=True)[:_MARKS]
    for lengths in _long_splits(steps, marks, rng, is_quick=pace.seconds(steps) > _LONG_SECONDS):
        cut = runner.walk(row, lengths)
        differs = tally.differs(whole, cut)
        if differs is None and tally.tolerance <= ABSOLUTE:
            faint = _differs_faintly(runner, row, whole, cut, lengths, rng)
            if faint:
                raise not_streamable(f"{faint} between one chunk and several: a memory that is not among the states")
        if differs and not _is_rounding(runner, row, whole, cut, lengths, rng):
            _refuse_long(runner, whole, cut, lengths, tally, differs)
    return reach, origin


@dataclass(frozen=True, slots=True)
class _Pace:
    """What runs cost: the seconds of a step in a chunk, and of a step alone, and the elements of one."""

    chunk: float
    single: float
    elements: int

    @classmethod
    def of(cls, runner: GraphRunner, rng: np.random.Generator, vocabularies: Mapping[str, int], clock: Clock) -> _Pace:
        steps = _LENGTHS[0]
        row = random_inputs(runner.manifest, 1, steps, rng, vocabularies)
        started = clock.monotonic()
        whole = runner.walk(row, [steps])
        between = clock.monotonic()
        runner.walk(row, [1] * steps)
        ended = clock.monotonic()
        elements = sum(array.size for array in (*row.values(), *whole.outputs.values())) // steps
        return cls((between - started) / steps, (ended - between) / steps, elements)

    def seconds(self, steps: int) -> float:
        """Return about how long the proof of a sequence takes with as few splits as there may be."""
        return steps * (5 * self.chunk + self.single)

    def allows(self, steps: int) -> bool:
        """Whether the sequence is short enough."""
        return self.seconds(steps) < _MOST_SECONDS and steps * self.elements <= _MOST_ELEMENTS


def _longest(runner: GraphRunner, row: Tensors, steps: int) -> tuple[int, Result]:
    """Run as much of a sequence as the graph has positions for: beyond their table it refuses every step, aloud."""
    try:
        return steps, runner.walk(row, [steps])
    except BundleError as error:
        low, high, cause = _LENGTHS[0], steps, error
    while high - low > 1:
        middle = (low + high) // 2
        try:
            runner.walk(runner.cut(row, 0, middle), [middle])
            low = middle
        except BundleError as error:
            high, cause = middle, error
    pool = runner.pool(1)
    try:
        for start in range(high):
            runner.step(pool, [0], runner.cut(row, start, start + 1))
    except BundleError as error:
        if error.reason == REFUSED and start == low:
            return low, runner.walk(runner.cut(row, 0, low), [low])
    raise not_streamable(f"a run of {high} steps at once fails, one of {low} does not: {cause.message}")


def _long_splits(
    steps: int, marks: Sequence[int], rng: np.random.Generator, *, is_quick: bool
) -> Iterator[Sequence[int]]:
    """Cut in few places: in the middle, at the ends, and around each number of the graph; then step by step."""
    half = steps // 2
    yield [half, steps - half]
    yield [1, steps - 1]
    if not is_quick:
        yield [steps - 1, 1]
        cuts = np.sort(rng.integers(1, steps, 4))
        yield [int(length) for length in np.diff([0, *cuts.tolist(), steps]) if length]
    for mark in marks[: 1 if is_quick else None]:
        for length in (mark - 1, mark, mark + 1):
            if 0 < length < steps:
                yield [length, steps - length]
                rest = steps - 3 - length
                if rest > 0 and not is_quick:
                    yield [3, length, rest]
    yield [1] * steps


def _is_rounding(
    runner: GraphRunner,
    row: Tensors,
    whole: Result,
    cut: Result,
    lengths: Sequence[int],
    rng: np.random.Generator,
    begun: Tensors | None = None,
) -> bool:
    """Say whether a difference is no more than what a change in the last bits becomes by then."""
    slack = rounding(runner, row, lengths, cut, rng, begun)
    for spec in runner.manifest.outputs:
        starts = [part(result.outputs[spec.name], spec.time_axis, 0, lengths[0]) for result in (whole, cut)]
        if spec.time_axis is not None and not is_rounding(starts[0], starts[1], slack[spec.name]):
            return False
    return all(
        is_rounding(values, (cut.outputs | cut.states)[name], slack[name])
        for name, values in (whole.outputs | whole.states).items()
    )


def _differs_faintly(
    runner: GraphRunner, row: Tensors, whole: Result, cut: Result, lengths: Sequence[int], rng: np.random.Generator
) -> str | None:
    """Compare outputs that are so small that all of them are equal up to 1e-5: by their own size."""
    found = {name: _largest(values, cut.outputs[name]) for name, values in whole.outputs.items()}
    found = {name: error for name, error in found.items() if error > _FAINT * _magnitude(whole.outputs[name])}
    slack = rounding(runner, row, lengths, cut, rng) if found else {}
    for name, error in found.items():
        if error > _NUDGES * slack[name]:
            return f"output {name} differs by {error:.3g}, of at most {_magnitude(whole.outputs[name]):.3g},"
    return None


def rounding(
    runner: GraphRunner,
    row: Tensors,
    lengths: Sequence[int],
    cut: Result,
    rng: np.random.Generator,
    begun: Tensors | None = None,
) -> dict[str, float]:
    """Return how much outputs and states change where the last bits of what they come from do.

    A network that is near chaos makes much of little: so all chunks but the first run again, from states and with
    inputs that differ by a rounding.

    Args:
        runner: Runs the graph.
        row: One sequence.
        lengths: How it is cut, into two chunks or more.
        cut: What came of that.
        rng: Decides which bits.
        begun: The states that it begins with, if not the initial ones.
    """
    first, steps = lengths[0], sum(lengths)
    states = _nudged(runner.walk(runner.cut(row, 0, first), [first], begun).states, rng)
    nudged = runner.walk(_nudged(runner.cut(row, first, steps), rng), lengths[1:], states)
    slack = {name: _largest(cut.states[name], values) for name, values in nudged.states.items()}
    for spec in runner.manifest.outputs:
        rest = cut.outputs[spec.name]
        if spec.time_axis is not None:
            rest = part(rest, spec.time_axis, first, steps)
        slack[spec.name] = _largest(rest, nudged.outputs[spec.name])
    return slack


def is_rounding(expected: Array, found: Array, slack: float) -> bool:
    """Say whether two results are equal, or differ by no more than what roundings become: `slack`, of `rounding`."""
    return excess(expected, found) <= ABSOLUTE or _largest(expected, found) <= _NUDGES * slack


def _nudged(tensors: Tensors, rng: np.random.Generator) -> Tensors:
    return {
        name: (array * (1 + _NUDGE * rng.standard_normal(array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in tensors.items()
    }


def _refuse_long(
    runner: GraphRunner, whole: Result, cut: Result, lengths: Sequence[int], tally: _Tally, differs: str
) -> None:
    """Say whether the first chunk lacked what comes later, or the later ones what came before."""
    per_step = {spec.name: spec.time_axis for spec in runner.manifest.outputs if spec.time_axis is not None}
    expected, found = (
        Result({name: part(result.outputs[name], axis, 0, lengths[0]) for name, axis in per_step.items()}, {})
        for result in (whole, cut)
    )
    if tally.differs(expected, found):
        raise not_streamable(f"{differs} when steps after the first {lengths[0]:,} are cut off: it looks ahead")
    raise not_streamable(
        f"{differs} between one chunk of {sum(lengths):,} steps and several: a memory that is not among the states"
    )


def _scaled(inputs: Tensors, scale: int) -> Tensors:
    return {
        name: array * array.dtype.type(scale) if array.dtype.kind == "f" else array for name, array in inputs.items()
    }


def _largest(expected: Array, found: Array) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max(initial=0.0))


def _magnitude(array: Array) -> float:
    return float(np.abs(array.astype(np.float64)).max(initial=0.0))
