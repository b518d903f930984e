"""Which free axis is the batch and which the time: guesses in the order of their likelihood, to be tried.

Knows what files declare and what callers say. Runs nothing. Exporters that trace mark every axis as free, the features
too: `widths` says how wide an input is by the weights that it meets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from tidegate.bundle import BATCH, TIME, Axis
from tidegate.errors import known_names
from tidegate_export.errors import ExportError
from tidegate_export.importing.evidence import batch_likelihood, time_likelihood
from tidegate_export.importing.flow import Flow, Link
from tidegate_export.importing.foreign import Declared
from tidegate_export.importing.plan import Axes, context_place
from tidegate_export.importing.request import ANY, ImportRequest

MOST_GUESSES = 24
_MOST_FREE = 8

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
    inputs: Sequence[Declared], likely_states: Mapping[str, float], widths: Mapping[str, int], request: ImportRequest
) -> list[Guess]:
    """Return what the free axes may be, likeliest first, at most `MOST_GUESSES`.

    Args:
        inputs: With what was told.
        likely_states: Inputs that look like states; their free axes cannot be time.
        widths: By input: how many features its weights ask for.
        request: An axis for all inputs (`--batch-axis 1`) holds for those that are no likely states.
    """
    inputs = [_general(item, likely_states, request) for item in inputs]
    free = sorted({dim for item in inputs for dim in item.dims or () if isinstance(dim, str)} - {BATCH, TIME})
    if len(free) > _MOST_FREE:
        raise ExportError(f"{len(free)} axes are free ({', '.join(free)}): say them, as in --shape NAME=batch,time,80")
    choices: list[list[Axis]] = [[BATCH, TIME, _ONE, *_widths_at(name, inputs, widths)] for name in free]
    scored: list[tuple[float, Guess]] = []
    for meanings in itertools.product(*choices):
        meaning = dict(zip(free, meanings, strict=True))
        guess = _guess(inputs, meaning)
        if guess is not None and _is_allowed(guess, request):
            scored.append((sum(_likelihood(*item, inputs, likely_states) for item in meaning.items()), guess))
    allowed = [guess for _, guess in sorted(scored, key=lambda item: -item[0])]
    return allowed[:MOST_GUESSES]


def _general(item: Declared, likely_states: Mapping[str, float], request: ImportRequest) -> Declared:
    dims = item.dims or ()
    for word, axes in ((BATCH, request.batch_axes), (TIME, request.time_axes)):
        axis = axes.get(ANY)
        if axis is None or item.name in axes or item.name in likely_states or axis >= len(dims):
            continue
        if isinstance(dims[axis], str):
            dims = (*dims[:axis], word, *dims[axis + 1 :])
    return Declared(item.name, item.dtype, dims)


def _widths_at(name: str, inputs: Sequence[Declared], widths: Mapping[str, int]) -> list[int]:
    """Return the widths that a free axis may be, of inputs that have theirs nowhere else."""
    found = (widths[item.name] for item, _ in _places(name, inputs) if item.name in widths)
    fixed = {dim for item, _ in _places(name, inputs) for dim in item.dims or ()}
    return sorted({width for width in found if width not in fixed and width != _ONE})


def _guess(inputs: Sequence[Declared], meaning: Mapping[str, Axis]) -> Guess | None:
    guess = {}
    for item in inputs:
        axes = tuple(dim if isinstance(dim, int) else meaning.get(dim, dim) for dim in item.dims or ())
        opened = [meaning[dim] for dim in item.dims or () if isinstance(dim, str) and dim in meaning]
        has_widths = sum(isinstance(size, int) and size != _ONE for size in opened)
        if axes.count(BATCH) > 1 or axes.count(TIME) > 1 or has_widths > 1:
            return None
        guess[item.name] = axes
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


def _likelihood(name: str, meaning: Axis, inputs: Sequence[Declared], likely_states: Mapping[str, float]) -> float:
    score = -1.0 if meaning == _ONE else 0.0
    if not name.startswith("?"):
        score += 2 * batch_likelihood(name) * (meaning in {BATCH, _ONE}) + 2 * time_likelihood(name) * (meaning == TIME)
    for item, place in _places(name, inputs):
        if isinstance(meaning, int) and meaning != _ONE:
            score += 2.0 if place == len(item.dims or ()) - 1 else 1.0
        elif item.name in likely_states:
            score += {BATCH: 2.0, TIME: -3.0}.get(str(meaning), 0.0)
        else:
            num_free = sum(isinstance(dim, str) for dim in item.dims or ())
            if meaning == BATCH and place == 0 and num_free > 1:
                score += 0.5
            if meaning == TIME and (place == 1 or num_free == 1):
                score += 0.5
    return score


def _places(name: str, inputs: Sequence[Declared]) -> Iterator[tuple[Declared, int]]:
    for item in inputs:
        for place, dim in enumerate(item.dims or ()):
            if dim == name:
                yield item, place


_LAYERS = ("LSTM", "GRU", "RNN")


def widths(flow: Flow, inputs: Sequence[str]) -> dict[str, int]:
    """Return the number of features of those inputs whose values meet weights unchanged."""
    met = [pair for node in flow.graph for pair in _met(node)]
    found = {}
    for name, links in flow.input_links(inputs).items():
        sizes = [size for value, size in met if value is not None and links.get(value) is Link.MOVED]
        if sizes:
            found[name] = sizes[0]
    return found


def _met(node: ir.Node) -> list[tuple[ir.Value | None, int]]:
    """Return which values a node takes, with the width that its weights ask of them."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    weight = None if value is None else ir.convenience.get_const_tensor(value)
    dims = [] if weight is None else list(weight.shape.numpy())
    if node.op_type in _LAYERS and len(dims) == 3:
        hidden = node.attributes.get_int("hidden_size", None)
        states = [] if hidden is None else [(state, hidden) for state in node.inputs[5:7]]
        return [(node.inputs[0], dims[2]), *states]
    if node.op_type in {"MatMul", "MatMulInteger"} and len(dims) == 2:
        return [(node.inputs[0], dims[0])]
    if node.op_type == "Gemm" and len(dims) == 2:
        return [(node.inputs[0], dims[1 if node.attributes.get_int("transB", 0) else 0])]
    return []
