"""Which free axis is the batch and which the time: guesses in the order of their likelihood, to be tried.

Knows what files declare and what callers say. Runs nothing. Which free axes are the same, and how wide those are that
meet weights, the graph itself says (`shapes`): what remains is to find out of a few whether they are batch or time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import onnx

from tidegate.bundle import BATCH, TIME, Axis
from tidegate.errors import known_names
from tidegate_export.errors import ExportError
from tidegate_export.importing.evidence import batch_likelihood, time_likelihood
from tidegate_export.importing.foreign import Declared
from tidegate_export.importing.plan import Axes, context_place
from tidegate_export.importing.request import ANY, ImportRequest
from tidegate_export.importing.shapes import FreeAxis, Place, Readings, read_names, read_shapes

_MOST_GUESSES = 24
"""Of one way to read the graph."""
_MOST_COMBINED = 4096

Guess: TypeAlias = dict[str, Axes]
"""The axes of every input by its name."""

_ONE = 1
"""A free batch axis that other inputs do not have: rows one by one."""


def told(inputs: Sequence[Declared], request: ImportRequest) -> list[Declared]:
    """Return the inputs with the axes that the caller named: `batch` and `time` stand among the dims then.

    Raises:
        ExportError: What was said fits no input, or an input declares no shape and nothing was said of it.
    """
    known = {item.name for item in inputs}
    for option, names in (
        ("--shape", request.shapes),
        ("--context", request.contexts),
        ("--batch-axis", request.batch_axes),
        ("--time-axis", request.time_axes),
    ):
        for name in names:
            if name != ANY and name not in known:
                there = known_names(name, sorted(known), "it has")
                raise ExportError(f"{option}: the graph has no input {name!r}{there}")
    return [_told(item, request) for item in inputs]


def _told(item: Declared, request: ImportRequest) -> Declared:
    # The file's own `batch` and `time` are free axes like others: they are hints only.
    dims: tuple[Axis, ...] | None = (
        None if item.dims is None else tuple(f"the_{dim}" if dim in {BATCH, TIME} else dim for dim in item.dims)
    )
    if item.name in request.shapes:
        dims = _with_context(item.name, request)
        if item.dims is not None and not _agree(dims, item.dims):
            told = ",".join(map(str, dims))
            raise ExportError(f"--shape {item.name}={told} (with context) contradicts the file's {list(item.dims)}")
        if item.dims is not None:  # what the file fixes at 1 is freed later
            dims = tuple(1 if dim == 1 else axis for axis, dim in zip(dims, item.dims, strict=True))
        if item.dims is not None:  # what the file fixes at 1 is freed later, where that can be
            dims = tuple(1 if dim == 1 else axis for axis, dim in zip(dims, item.dims, strict=True))
    if dims is None:
        raise ExportError(f"{item.name!r} declares no shape: say it, as in --shape {item.name}=batch,time,80")
    for word, axes in ((BATCH, request.batch_axes), (TIME, request.time_axes)):
        axis = axes.get(item.name)
        if axis is None:
            continue
        if axis >= len(dims):
            raise ExportError(f"--{word}-axis {item.name}={axis}: it has {len(dims)} axes, counted from 0")
        if not isinstance(dims[axis], int):
            dims = (*dims[:axis], word, *dims[axis + 1 :])
    return Declared(item.name, item.dtype, dims)


def _with_context(name: str, request: ImportRequest) -> Axes:
    axes = list(request.shapes[name])
    context = request.contexts.get(name)
    place = None if context is None else context_place(context, tuple(axes))
    if context is not None and place is not None:
        size = axes[place]
        if isinstance(size, int):
            axes[place] = size + context.size
    return tuple(axes)


def _agree(axes: Axes, dims: Sequence[int | str]) -> bool:
    return len(axes) == len(dims) and all(
        isinstance(dim, str) or dim in {axis, 1 if isinstance(axis, str) else axis}
        for axis, dim in zip(axes, dims, strict=True)
    )


def guesses(
    model: onnx.ModelProto,
    inputs: Sequence[Declared],
    readings: Readings,
    likely_states: Mapping[str, float],
    request: ImportRequest,
) -> Iterator[Guess]:
    """Yield what the free axes may be, likeliest first.

    The graph says first what is equal, as far as it is likely; then only what is sure; then nothing but the file's
    names count, for a file may say what is wrong.

    Args:
        model: The graph.
        inputs: With what was told.
        readings: What the graph says of them.
        likely_states: Inputs that look like states; their free axes cannot be time.
        request: An axis for all inputs (`--batch-axis 1`) holds for those that are no likely states.
    """
    general = [_general(item, likely_states, request) for item in inputs]
    if general != list(inputs):
        inputs, readings = general, read_shapes(model, general)
    seen: list[Guess] = []
    closed: list[Guess] = []
    for reading in (readings.likely, readings.sure, read_names(inputs)):
        axes = _merged(reading.axes, inputs, likely_states)
        open_ = {place for axis in axes if axis.size is None for place in axis.places if place[0] not in likely_states}
        found = 0
        for guess in _combined(axes, inputs, likely_states):
            if found == _MOST_GUESSES:
                break
            if guess not in seen and _is_allowed(guess, request):
                seen.append(guess)
                if any(guess[name][place] == _ONE for name, place in open_):
                    closed.append(guess)
                else:
                    found += 1
                    yield guess
    # The file leaves these axes of the data free: that they are 1 is the last thing to try.
    yield from closed[:_MOST_GUESSES]


def example(inputs: Iterable[Declared]) -> str:
    """Return how to say the sizes of the first of `inputs` that has free ones; empty where none has."""
    for item in inputs:
        dims = item.dims or ()
        free = [place for place, dim in enumerate(dims) if isinstance(dim, str) and dim not in {BATCH, TIME}]
        if free:
            words = dict(zip(free, (BATCH, TIME), strict=False))
            if len(dims) - 1 in words and len(free) > 1:
                words[len(dims) - 1] = "512"
            told = [words.get(place, str(dim) if place not in free else "512") for place, dim in enumerate(dims)]
            return f"--shape {item.name}={','.join(told)}"
    return ""


def _general(item: Declared, likely_states: Mapping[str, float], request: ImportRequest) -> Declared:
    dims = item.dims or ()
    for word, axes in ((BATCH, request.batch_axes), (TIME, request.time_axes)):
        axis = axes.get(ANY)
        if axis is None or item.name in axes or item.name in likely_states or axis >= len(dims):
            continue
        if isinstance(dims[axis], str):
            dims = (*dims[:axis], word, *dims[axis + 1 :])
    return Declared(item.name, item.dtype, dims)


def _merged(axes: Sequence[FreeAxis], inputs: Sequence[Declared], likely_states: Mapping[str, float]) -> list[FreeAxis]:
    """Take free axes at one place of likely states of one shape for the same."""
    dims = {item.name: item.dims or () for item in inputs}
    merged: dict[object, FreeAxis] = {}
    for index, axis in enumerate(axes):
        is_alike = axis.size is None and all(name in likely_states for name, _ in axis.places)
        shapes = {
            (place, tuple(dim if isinstance(dim, int) else "" for dim in dims[name])) for name, place in axis.places
        }
        key: object = shapes.pop() if is_alike and len(shapes) == 1 else index
        known = merged.get(key)
        merged[key] = (
            axis
            if known is None
            else replace(known, places=(*known.places, *axis.places), labels=known.labels | axis.labels)
        )
    return list(merged.values())


def _combined(
    axes: Sequence[FreeAxis], inputs: Sequence[Declared], likely_states: Mapping[str, float]
) -> Iterator[Guess]:
    """Yield what all axes may be together, by the sum of what speaks for each, at most `_MOST_COMBINED`; at last,
    that all which are open are 1.
    """
    dims = {item.name: item.dims or () for item in inputs}
    scored: list[list[tuple[float, Axis]]] = [
        sorted(
            ((-_likelihood(axis, meaning, dims, likely_states), meaning) for meaning in _meanings(axis)),
            key=lambda item: item[0],
        )
        for axis in axes
    ]
    first = (0,) * len(axes)
    waiting = [(sum(options[0][0] for options in scored), first)]
    known = {first}
    for _ in range(_MOST_COMBINED):
        if not waiting:
            return
        loss, chosen = heapq.heappop(waiting)
        guess = _guess(inputs, axes, [options[at][1] for options, at in zip(scored, chosen, strict=True)])
        if guess is not None:
            yield guess
        for index, options in enumerate(scored):
            at = chosen[index]
            following = (*chosen[:index], at + 1, *chosen[index + 1 :])
            if at + 1 < len(options) and following not in known:
                known.add(following)
                heapq.heappush(waiting, (loss - options[at][0] + options[at + 1][0], following))
    ones = _guess(inputs, axes, [_meanings(axis)[-1] for axis in axes])
    if ones is not None:
        yield ones


def _meanings(axis: FreeAxis) -> Sequence[Axis]:
    return (BATCH, TIME, _ONE) if axis.size is None else (axis.size,)


def _guess(inputs: Sequence[Declared], axes: Sequence[FreeAxis], meanings: Sequence[Axis]) -> Guess | None:
    """Return the axes of every input; None where one would have two batches or times."""
    meaning = {place: chosen for axis, chosen in zip(axes, meanings, strict=True) for place in axis.places}
    guess = {}
    for item in inputs:
        found = tuple(
            dim if isinstance(dim, int) else meaning[item.name, place] for place, dim in enumerate(item.dims or ())
        )
        if found.count(BATCH) > 1 or found.count(TIME) > 1:
            return None
        guess[item.name] = found
    return guess


def _is_allowed(guess: Guess, request: ImportRequest) -> bool:
    """Whether a guess respects `none`, and has time where a context is counted in steps of it."""
    for name, context in request.contexts.items():
        place = context_place(context, guess[name])
        if place is None or guess[name][place] == BATCH:
            return False
    return all(
        word not in axes or axis is not None
        for word, said in ((BATCH, request.batch_axes), (TIME, request.time_axes))
        for name, axis in said.items()
        for axes in ([guess[name]] if name != ANY else guess.values())
    )


def _likelihood(
    axis: FreeAxis, meaning: Axis, dims: Mapping[str, Sequence[int | str]], likely_states: Mapping[str, float]
) -> float:
    score = -1.0 if meaning == _ONE else 0.0
    names = [label for label in axis.labels if not label.startswith("?")]
    if meaning == TIME:
        score += 2 * max(map(time_likelihood, names), default=0) + 2.0 * (axis.hints.get(TIME, 0) > 0)
    else:
        score += 2 * max(map(batch_likelihood, names), default=0) + 1.0 * (axis.hints.get(BATCH, 0) > 0)
    return (
        score
        + max(
            (_likelihood_at(place, meaning, dims) for place in axis.places if place[0] not in likely_states), default=0
        )
        + (
            {BATCH: 2.0, TIME: -3.0}.get(str(meaning), 0.0)
            if any(name in likely_states for name, _ in axis.places)
            else 0.0
        )
    )


def _likelihood_at(at: Place, meaning: Axis, dims: Mapping[str, Sequence[int | str]]) -> float:
    name, place = at
    num_free = sum(isinstance(dim, str) for dim in dims[name])
    if meaning == BATCH and place == 0 and num_free > 1:
        return 0.5
    return 0.5 if meaning == TIME and (place == 1 or num_free == 1) else 0.0
