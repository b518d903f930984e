"""Why a graph cannot stream: what is in it, and what a few runs show.

What draws random numbers or is in training mode is found by looking. How far a graph looks ahead, how much it remembers
outside of its states, and how many outputs it has a step is measured: some steps are changed, and what changes with
them is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from tidegate_export.errors import ExportError
from tidegate_export.importing.extents import Trials, extents
from tidegate_export.importing.foreign import Array, Arrays, Foreign, random_array
from tidegate_export.importing.lift import Lifted, Survey
from tidegate_export.importing.refusals import listed
from tidegate_export.importing.source import attribute, called, constants, nodes

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_MANY = 32
_SEEDS = range(2)
_NOTICED = 1e-4
"""Of a change of a step by 3 and more: less is rounding."""


def refuse_at_sight(model: onnx.ModelProto) -> None:
    """Refuse what gives other results in every run, or the results of training.

    Raises:
        ExportError: With the node.
    """
    random = [called(node) for node in nodes(model.graph) if node.op_type in _RANDOM and node.domain in {"", "ai.onnx"}]
    if random:
        raise ExportError(
            f"{listed(random)} draws random numbers, so two runs of one sequence differ: cannot stream; export the "
            "model without its noise"
        )
    known = {name: numpy_helper.to_array(item) for name, item in constants(model.graph).items()}
    for node in nodes(model.graph):
        if node.op_type == "Dropout" and _drops(node, known):
            raise ExportError(
                f"{called(node)} is in training mode: it drops random elements, so two runs of one sequence differ: "
                "cannot stream; export the model after model.eval()"
            )
        if node.op_type == "BatchNormalization" and attribute(node, "training_mode") == 1:
            raise ExportError(
                f"{called(node)} is in training mode: it takes mean and variance over all rows and steps of a run: "
                "cannot stream; export the model after model.eval()"
            )


def _drops(node: NodeProto, known: dict[str, Array]) -> bool:
    mode = node.input[2] if len(node.input) > 2 else ""
    ratio = node.input[1] if len(node.input) > 1 else ""
    is_off = not mode or (mode in known and not known[mode].any())
    return not is_off and not (ratio in known and not known[ratio].any())


def why_it_cannot_stream(seen: Survey) -> str | None:
    """Return the reason why a graph cannot stream, None where nothing shows it.

    Args:
        seen: What was found of the graph; what could be lifted out of it did not make it stream.
    """
    if seen.backward:
        return backwards(seen.backward)
    if seen.trials is None or not seen.lifts:
        return None
    kept = "; ".join(dict.fromkeys(seen.lifts[0].kept[:2]))
    try:
        found = _Measure.of(seen.trials, seen.lifts[0]).reason()
        return f"cannot stream: {kept}, so a sequence in pieces gives other results" if kept and not found else found
    except _RateError as error:
        return str(error)
    except ExportError:  # it does not run on so many steps
        return None


def backwards(names: Sequence[str]) -> str:
    """Say that layers, or what turns a sequence around for them, read it from its end."""
    return (
        f"{listed(names)}: that reads the sequence backwards, from an end that a stream does not have, so it cannot "
        "stream; use a model that only runs forward (if it runs across each step, not along time: --within-frame)"
    )


@dataclass(frozen=True, slots=True)
class _Measure:
    """Runs of a graph with its states taken out, along one axis."""

    foreign: Foreign
    trials: Trials
    lifted: Lifted
    feeds: Arrays
    places: dict[str, int]
    """By input: its axis along the sequence."""
    steps: int
    axes: dict[str, int]
    """By output that has a row a step: the axis."""

    @classmethod
    def of(cls, trials: Trials, lifted: Lifted) -> _Measure:
        """Run on a sequence that is long enough to tell.

        Raises:
            ExportError: The graph does not run on any.
        """
        foreign = Foreign(lifted.model)
        index = trials.symbols.index(lifted.symbol)
        before, after = trials.feeds[0], trials.feeds[index + 1]
        places = {
            name: next(at for at, (a, b) in enumerate(zip(array.shape, after[name].shape, strict=True)) if a != b)
            for name, array in before.items()
            if array.shape != after[name].shape
        }
        base = trials.sizes[0][index]
        steps = base * (8 if base < _MANY else 3)
        feeds = {name: _longer(array, places.get(name), steps, base) for name, array in before.items()}
        axes = cls._axes(foreign, trials, lifted)
        return cls(foreign, trials, lifted, feeds | lifted.firsts(trials, 0), places, steps, axes)

    @staticmethod
    def _axes(foreign: Foreign, trials: Trials, lifted: Lifted) -> dict[str, int]:
        states = {state.output for state in lifted.states}
        runs = [foreign.run(feeds | lifted.firsts(trials, trial)) for trial, feeds in enumerate(trials.feeds)]
        found = {}
        for name in runs[0].keys() - states:
            for axis, extent in enumerate(extents([run[name] for run in runs], trials) or ()):
                if extent.symbol == lifted.symbol:
                    if extent.factor != 1:
                        raise _RateError(name, extent.factor)
                    found[name] = axis
        return found

    def reason(self) -> str | None:
        ahead = self._ahead()
        if ahead is not None or self._has_others:
            return ahead
        return self._remembered()

    @property
    def _has_others(self) -> bool:
        """Whether some inputs are no sequences: they may be states, and nobody said so."""
        return bool(self.trials.feeds[0].keys() - self.places.keys() - self._counted)

    def _ahead(self) -> str | None:
        """Change later steps, and see how far in front of them outputs change."""
        whole = self.foreign.run(self.feeds)
        found: list[int] = []
        for place in (self.steps // 2, 3 * self.steps // 4):
            first = place
            for seed in _SEEDS:
                changed = self.foreign.run(self._changed(range(place, self.steps), seed))
                for name, axis in self.axes.items():
                    at = _differing(whole[name], changed[name], axis)
                    first = min([first, *at])
            found.append(place - first)
        if not any(found):
            return None
        because = _because(self.lifted.kept)
        if found[0] == found[1]:
            return (
                f"the output of a step hangs on {_steps(found[0])} after it{because}: cannot stream; export a causal "
                "model, which pads in front only"
            )
        return (
            f"the outputs of all steps hang on later ones, to the end of the sequence{because}: cannot stream; export "
            "a model that only looks back"
        )

    def _remembered(self) -> str | None:
        """Run the end of a sequence from the states that the beginning left, and see what is not as in the whole."""
        whole = self.foreign.run(self.feeds)
        place = self.steps // 2
        head = self.foreign.run(self._cut(range(place)))
        states = {state.input: head[state.output] for state in self.lifted.states}
        tail = self.foreign.run(self._cut(range(place, self.steps)) | states)
        most = 0
        for name, axis in self.axes.items():
            wanted = whole[name].take(range(place, whole[name].shape[axis]), axis)
            if wanted.shape != tail[name].shape:
                lacking = wanted.shape[axis] - tail[name].shape[axis]
                return (
                    f"{name} has {_steps(lacking)} less than its input in every run{_because(self.lifted.kept)}: say "
                    f"that the graph wants as many again (--context NAME={lacking}@time)"
                )
            most = max([most, *(at + 1 for at in _differing(wanted, tail[name], axis))])
        if not most:
            return None
        because = _because(self.lifted.kept)
        if most == self.steps - place and any("over all steps" in item for item in self.lifted.kept):
            return (
                f"a step looks back on all steps before it{because}, so its state would grow without end: cannot "
                "stream; export the model with a cache of a fixed number of steps as an input and an output"
            )
        far = "" if most == self.steps - place else f" of {_steps(most)}"
        return (
            f"it has a memory{far} that is in no state{because}: cannot stream; export the model with that memory as "
            "an input and an output, or say what the graph wants again (--context)"
        )

    def _changed(self, steps: range, seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        feeds = dict(self.feeds)
        for name, axis in self.places.items():
            array = feeds[name].copy()
            if name in self._counted or array.dtype == bool:
                continue
            part = np.moveaxis(array, axis, 0)
            shape = part[steps.start : steps.stop].shape
            if array.dtype.kind == "f":
                part[steps.start : steps.stop] += rng.choice([-1, 1], shape) * rng.uniform(1, 4, shape)
            else:
                part[steps.start : steps.stop] = rng.integers(0, 2, shape)
            feeds[name] = array
        return feeds

    def _cut(self, steps: range) -> Arrays:
        found = dict(self.feeds)
        for name, array in self.feeds.items():
            if name in self.places:
                found[name] = array.take(steps, self.places[name])
            elif name in self._counted and array.size and int(array.flat[0]) == self.steps:
                found[name] = np.full_like(array, len(steps))
        return found

    @property
    def _counted(self) -> set[str]:
        return {name for name, array in self.feeds.items() if array.ndim <= 1 and array.dtype.kind in "iu"}


class _RateError(ExportError):
    def __init__(self, output: str, factor: Fraction) -> None:
        many, few = factor.denominator, factor.numerator
        per = f"one for every {many} steps" if few == 1 else f"{few} for every {_steps(many)}"
        super().__init__(
            f"output {output!r} has not one row for each step, but {per}: cannot stream step by step; if the graph "
            f"takes {many} steps at once, make them one: --shape"
        )


def _longer(array: Array, axis: int | None, steps: int, base: int) -> Array:
    if axis is None:
        is_count = array.ndim <= 1 and array.dtype.kind in "iu" and array.size and int(array.flat[0]) == base
        return np.full_like(array, steps) if is_count else array
    shape = list(array.shape)
    shape[axis] = steps
    return random_array(array.dtype.name, shape, np.random.default_rng(1))


def _differing(left: Array, right: Array, axis: int) -> list[int]:
    """Return the first and the last place along an axis where two results differ."""
    if left.shape != right.shape:
        return []
    rows = [np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64) for array in (left, right)]
    with np.errstate(invalid="ignore"):
        differs = np.abs(rows[0] - rows[1]) > _NOTICED * (1 + np.abs(rows[0]))
    at = np.flatnonzero(differs.any(axis=1))
    return [int(at[0]), int(at[-1])] if at.size else []


def _because(kept: Sequence[str]) -> str:
    return f" ({'; '.join(dict.fromkeys(kept[:2]))})" if kept else ""


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"
