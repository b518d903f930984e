"""Contexts as the caller says them, held against the file: along which axis each is counted, and how it begins.

Knows what files declare. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tidegate.bundle import BATCH, TIME, Axis
from tidegate.errors import known_names
from tidegate_export.errors import ExportError
from tidegate_export.importing.foreign import Array, Declared
from tidegate_export.importing.plan import Axes, Found, context_axes, sized, what_fits
from tidegate_export.importing.request import ANY, Context, ImportRequest

_MOST_ROWS = 128
"""An axis longer than this holds samples of a wave, not rows: no context is one less than all of it."""


def with_contexts_placed(request: ImportRequest, inputs: Mapping[str, Declared]) -> ImportRequest:
    """Return the request with the axis of every context by its number, or `time` where that is a free axis.

    A time axis that `--shape` names where the file has a fixed size is the one new row of a step.

    Raises:
        ExportError: A context fits no axis of its input, or contradicts what else was said.
    """
    contexts: dict[str, Context] = {}
    shapes = dict(request.shapes)
    for name, context in request.contexts.items():
        if name not in inputs:
            raise ExportError(
                f"--context: the graph has no input {name!r}{known_names(name, sorted(inputs), 'it has')}"
            )
        if name in request.constants:
            raise ExportError(f"--constant and --context contradict each other on {name!r}: leave one out")
        shape = shapes.get(name)
        dims: Axes = inputs[name].dims or shape or ()
        is_short = shape is not None and len(shape) + 1 == len(dims)  # the axis of one new element is left out
        said = replace(request, shapes={}) if is_short else request
        placed = _placed(name, context, dims, said)
        if shape is not None and isinstance(placed.axis, int) and len(shape) + is_short == len(dims):
            if is_short:
                if dims[placed.axis] == context.size + 1:
                    shapes[name] = (*shape[: placed.axis], 1, *shape[placed.axis :])
            elif shape[placed.axis] == TIME and isinstance(dims[placed.axis], int):
                shapes[name] = (*shape[: placed.axis], 1, *shape[placed.axis + 1 :])
            elif shape[placed.axis] == 1:
                placed = replace(placed, keeps_axis=True)
        contexts[name] = placed
    return replace(request, contexts=contexts, shapes=shapes)


def _placed(name: str, context: Context, dims: Axes, request: ImportRequest) -> Context:
    shape = request.shapes.get(name, (None,) * len(dims))
    place = context.axis if isinstance(context.axis, int) else len(dims) - 1
    if context.axis == TIME:
        along = _time_axis(name, context, dims, request)
        if along is None:
            return context
        place = along
    if not 0 <= place < len(dims):
        raise ExportError(_misfit(name, context, dims, f"it has the axes 0 to {len(dims) - 1}"))
    said, dim = shape[place] if place < len(shape) else None, dims[place]
    if said == BATCH or place in {request.batch_axes.get(name), request.batch_axes.get(ANY)}:
        raise ExportError(_misfit(name, context, dims, f"axis {place} is the batch"))
    if isinstance(dim, int):
        if dim <= context.size:
            raise ExportError(_misfit(name, context, dims, f"the graph takes {dim} elements in all along axis {place}"))
        left = 1 if said == TIME else said
        if isinstance(left, int) and left + context.size != dim:
            raise ExportError(
                _misfit(name, context, dims, f"with {left} as --shape says it makes {left + context.size} of {dim}")
            )
        return Context(context.size, place)
    if said == TIME or (said is None and context.axis is not None):
        return Context(context.size, TIME)
    return Context(context.size, place)


def _time_axis(name: str, context: Context, dims: Axes, request: ImportRequest) -> int | None:
    """Return which fixed axis `@time` means; None where a free axis is the time."""
    shape = request.shapes.get(name)
    if shape is not None and TIME in shape:
        place = shape.index(TIME)
        return place if place < len(dims) and isinstance(dims[place], int) else None
    said = request.time_axes.get(name, request.time_axes.get(ANY))
    if said is not None:
        return said if said >= len(dims) or isinstance(dims[said], int) else None
    if any(isinstance(dim, str) for dim in dims):
        return None
    fits = [at for at, dim in enumerate(dims) if dim == context.size + 1]
    if len(fits) != 1:
        raise ExportError(_misfit(name, context, dims, "it has no free axis: say the axis by its number"))
    return fits[0]


def _misfit(name: str, context: Context, dims: Axes, why: str) -> str:
    return f"--context {name}={context}: {name} is {_shown(dims)}, {why}; {what_fits(dims)}"


def with_first_contexts(found: Found, arrays: Mapping[str, Array], file: Path | None) -> Found:
    """Return `found` with the contexts that `--initial` gives by the names of their inputs.

    Raises:
        ExportError: An array does not fit.
    """
    firsts: dict[str, Array] = {}
    for name, array in arrays.items():
        spec = next(spec for spec in found.data if spec.name == name)
        shape = sized(context_axes(found.contexts[name], spec.axes), 1, 1)
        try:
            first = np.broadcast_to(array, shape).astype(spec.dtype)
        except ValueError as error:
            raise ExportError(
                f"{file}: {name!r} has the shape {list(array.shape)}, its context is {list(shape)} (one row)"
            ) from error
        if not np.isfinite(array).all() or (first.dtype.kind != "f" and (first != array).any()):
            raise ExportError(f"{file}: {name!r} holds numbers that {spec.dtype} cannot hold")
        firsts[name] = first
    return replace(found, first_contexts=firsts)


def wants_again(inputs: Sequence[Declared]) -> str:
    """Say which context an input could have, if one has room for it: for a graph that remembers nothing itself."""
    for item in inputs:
        dims = item.dims or ()
        rooms = [(at, dim) for at, dim in enumerate(dims) if isinstance(dim, int) and dim > 1]
        if not rooms or (len(rooms) == 1 and len(dims) > 1 and rooms[0][0] == len(dims) - 1 and _is_wide(dims)):
            continue
        place, size = rooms[0]
        number = size - 1 if size <= _MOST_ROWS else size // 8
        word = "rows" if place < len(dims) - 1 else "elements"
        return (
            f"{item.name} {_shown(dims)}: if each run wants the last {number} {word} again, "
            f"--context {item.name}={number}@{place}"
        )
    return ""


def _is_wide(dims: Axes) -> bool:
    """Whether the last axis is more likely the features of a step than a window: free axes or rows stand before."""
    return sum(isinstance(dim, str) for dim in dims) > 1


def _shown(dims: Sequence[Axis]) -> str:
    names = (str(dim).removeprefix("the_") for dim in dims)  # as the file calls them
    return f"[{', '.join('?' if name.startswith('?') else name for name in names)}]"
