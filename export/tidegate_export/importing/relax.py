"""Frees axes that a file fixes at 1, where that is provably safe: the batch, and the time.

An exporter that was shown one row of one step writes ones everywhere. Such an axis is made free, and the graph compared
with what it gave before: rows together with each row alone, several steps at once with one after the other, from random
states. Only what computes the same is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
import onnx

from tidegate.bundle import BATCH, TIME, StateSpec, TensorSpec
from tidegate.proof import ABSOLUTE, excess
from tidegate_export.errors import ExportError
from tidegate_export.importing.edit import with_free_axes, with_free_reshapes
from tidegate_export.importing.foreign import Array, Arrays, Foreign, random_array
from tidegate_export.importing.plan import Found, num_overlapping, sized

_MOST_TRIES = 48
_ONES = 3
_ROWS, _STEPS = (5, 3), (7, 4)
"""Tried one after the other: a size that the graph has anyway could agree by chance."""

AnySpec: TypeAlias = TensorSpec | StateSpec
Spec = TypeVar("Spec", TensorSpec, StateSpec)


def free_batch(found: Found, said: int | None = None) -> Found:
    """Return `found` with a batch axis on every input and state if one can be had; as it is where not.

    Args:
        found: What is known of the graph.
        said: The only axis of the data that may be it, if the caller said so.
    """
    if found.has_batch:
        return found
    every: tuple[AnySpec, ...] = (*found.data, *found.states)
    closed = [spec for spec in every if BATCH not in spec.axes]
    places = [[at for at, axis in enumerate(spec.axes) if axis == 1] for spec in closed]
    if said is not None:
        places = [
            [at for at in some if isinstance(spec, StateSpec) or at == said]
            for spec, some in zip(closed, places, strict=True)
        ]
    return _first_right(found, closed, places, BATCH, _rows_together)


def free_time(found: Found) -> Found:
    """Return `found` with a time axis on every input and output if one can be had; as it is where not."""
    if not found.is_frame or found.lengths or any(TIME in spec.axes for spec in found.data):
        return found
    places = [[at for at, axis in enumerate(spec.axes) if axis == 1] for spec in found.data]
    return _first_right(found, found.data, places, TIME, _steps_together)


Check = Callable[["_Pair"], "Found | None"]


@dataclass(frozen=True, slots=True)
class _Pair:
    """The graph as it is and with one axis free, and what is known of the latter's inputs."""

    found: Found
    before: Foreign
    after: Foreign
    data: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    model: onnx.ModelProto


def _first_right(
    found: Found, closed: Sequence[AnySpec], places: Sequence[Sequence[int]], word: str, check: Check
) -> Found:
    before = Foreign(found.model)
    for chosen in itertools.islice(_choices(closed, places), _MOST_TRIES):
        axes = {_name(spec): at for spec, at in zip(closed, chosen, strict=True)}
        for model in _models(found.model, axes, word):
            data = tuple(_opened(spec, axes, word) for spec in found.data)
            states = tuple(_opened(spec, axes, word) for spec in found.states)
            try:
                better = check(_Pair(found, before, Foreign(model), data, states, model))
            except ExportError:  # it does not load or run with that axis free
                continue
            if better is not None:
                return better
    return found


def _choices(closed: Sequence[AnySpec], places: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Yield one axis for each; tensors of the same axes have it at the same place."""
    alike = sorted({spec.axes for spec in closed}, key=[spec.axes for spec in closed].index)
    options = [next(some for spec, some in zip(closed, places, strict=True) if spec.axes == axes) for axes in alike]
    for chosen in itertools.product(*options):
        by_axes = dict(zip(alike, chosen, strict=True))
        yield tuple(by_axes[spec.axes] for spec in closed)


def _models(model: onnx.ModelProto, axes: dict[str, int], word: str) -> Iterator[onnx.ModelProto]:
    freed = with_free_axes(model, axes, word)
    yield freed
    for which in range(_ONES):
        yield with_free_reshapes(freed, which)


def _rows_together(pair: _Pair) -> Found | None:
    """Compare several rows in one run with each alone."""
    found = [_rows_at_once(pair, rows) for rows in _ROWS]
    return found[0] if found[0] == found[1] else None


def _rows_at_once(pair: _Pair, rows: int) -> Found | None:
    rng = np.random.default_rng(1)
    sides = [_feeds(pair, rng) for _ in range(rows)]
    specs: tuple[AnySpec, ...] = (*pair.data, *pair.states)
    together = pair.after.run(
        {_name(spec): np.concatenate([side[_name(spec)] for side in sides], spec.axes.index(BATCH)) for spec in specs}
    )
    alone = [pair.before.run(side) for side in sides]
    outputs = []
    for spec in pair.found.outputs:
        at = _grown(together[spec.name], alone[0][spec.name], rows)
        is_batch = at is not None and spec.axes[at] in {1, BATCH}
        if at is None or not is_batch or not _are_equal(together[spec.name], [run[spec.name] for run in alone], at):
            return None
        outputs.append(_opened(spec, {spec.name: at} if BATCH not in spec.axes else {}, BATCH))
    for state in pair.states:
        if not _are_equal(together[state.output], [run[state.output] for run in alone], state.axes.index(BATCH)):
            return None
    return replace(pair.found, model=pair.model, data=pair.data, states=pair.states, outputs=tuple(outputs))


def _steps_together(pair: _Pair) -> Found | None:
    """Compare several steps in one run with one after the other."""
    found = [_steps_at_once(pair, steps) for steps in _STEPS]
    return found[0] if found[0] == found[1] else None


def _steps_at_once(pair: _Pair, num_steps: int) -> Found | None:
    rng = np.random.default_rng(2)
    steps = [_feeds(pair, rng) for _ in range(num_steps)]
    whole = {
        spec.name: np.concatenate([step[spec.name] for step in steps], spec.axes.index(TIME)) for spec in pair.data
    }
    states = {state.input: steps[0][state.input] for state in pair.states}
    together = pair.after.run(whole | states)
    alone: list[Arrays] = []
    for step in steps:
        alone.append(pair.before.run(step | states))
        states = {state.input: alone[-1][state.output] for state in pair.states}
    outputs = []
    for spec in pair.found.outputs:
        at = _grown(together[spec.name], alone[0][spec.name], num_steps)
        if (
            at is None
            or spec.axes[at] != 1
            or not _are_equal(together[spec.name], [run[spec.name] for run in alone], at)
        ):
            return None
        outputs.append(_opened(spec, {spec.name: at}, TIME))
    if any(excess(alone[-1][state.output], together[state.output]) > ABSOLUTE for state in pair.states):
        return None
    return replace(pair.found, model=pair.model, data=pair.data, outputs=tuple(outputs), is_frame=False)


def _feeds(pair: _Pair, rng: np.random.Generator) -> Arrays:
    """Return one step of one row, two where there is a time axis, and a random state: zeros would be too much alike."""
    steps = 1 if pair.found.is_frame else 2
    feeds = {
        spec.name: random_array(spec.dtype, sized(spec.axes, 1, steps + num_overlapping(pair.found, spec)), rng)
        for spec in pair.found.data
    }
    for state in pair.found.states:
        shape = sized(state.axes, 1, 1)
        is_float = state.dtype.startswith("float")
        feeds[state.input] = random_array(state.dtype, shape, rng) if is_float else np.zeros(shape, state.dtype)
    if pair.found.lengths is not None:
        raise ExportError("lengths follow the batch")
    return feeds


def _grown(together: Array, alone: Array, size: int) -> int | None:
    """Return the one axis along which `together` has `size` times as much."""
    if together.ndim != alone.ndim:
        return None
    at = [i for i, (many, one) in enumerate(zip(together.shape, alone.shape, strict=True)) if many != one]
    return at[0] if len(at) == 1 and together.shape[at[0]] == size * alone.shape[at[0]] else None


def _are_equal(together: Array, parts: Sequence[Array], axis: int) -> bool:
    return axis < together.ndim and excess(np.concatenate(parts, axis), together) <= ABSOLUTE


def _opened(spec: Spec, axes: dict[str, int], word: str) -> Spec:
    name = _name(spec)
    if name not in axes:
        return spec
    opened = [word if place == axes[name] else axis for place, axis in enumerate(spec.axes)]
    return spec.model_copy(update={"axes": tuple(opened)})


def _name(spec: AnySpec) -> str:
    return spec.input if isinstance(spec, StateSpec) else spec.name
