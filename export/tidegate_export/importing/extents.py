"""How the sizes inside a graph follow the free axes of its inputs: found by running it at several sizes.

Shape inference loses an axis at the first Reshape whose shape is computed; a run does not. Knows nothing of states,
layers or roles: an axis is a *symbol*, the name under which the inputs declare it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import onnx
from onnx import ValueInfoProto

from tidegate.bundle import BATCH, TIME
from tidegate_export.errors import ExportError
from tidegate_export.importing.edit import copied
from tidegate_export.importing.evidence import is_length, time_likelihood
from tidegate_export.importing.foreign import Array, Arrays, Declared, Foreign, random_array
from tidegate_export.importing.shapes import Reading, read_shapes

_SIZES = (2, 7, 5, 11, 13, 17, 19, 23)
"""By class of symbols, before they are scaled; small for what looks like the batch."""

_SCALES = (1, 8, 16)
"""Some graphs need so many steps, or a multiple of some number."""

_WIDTHS = (80, 40, 81, 64, 128, 161, 257, 256, 13, 39, 32, 16, 20, 23, 26, 36, 60, 96, 100, 120, 129, 201, 240, 512)
_MOST_CLASSINGS = 40
_MOST_ELEMENTS = 1 << 24
"""Of one input in a trial."""

Classing: TypeAlias = Mapping[str, int]
"""The class of each symbol: symbols of one class have one size."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of one axis: `factor` times that of `symbol`, plus `offset`. Without a symbol it is always `size`."""

    size: int
    symbol: str | None = None
    factor: Fraction = Fraction(1)
    offset: int = 0
    is_mixed: bool = False
    """It hangs on several symbols, or on one in another way."""

    def is_along(self, symbol: str) -> bool:
        """Whether it is an axis of the input's elements along `symbol`, one for one, but for some at the ends."""
        return self.symbol == symbol and self.factor == 1 and not self.is_mixed

    @property
    def is_fixed(self) -> bool:
        return self.symbol is None and not self.is_mixed


@dataclass(frozen=True, slots=True)
class Trials:
    """Inputs on which a graph runs: of sizes to begin with, and for each class of symbols with another size of it."""

    feeds: tuple[Arrays, ...]
    sizes: tuple[tuple[int, ...], ...]
    """By trial: the size of each class."""
    symbols: tuple[str, ...]
    """By class: the symbol that stands for it."""
    classing: Classing

    def symbol_of(self, name: str) -> str:
        """Return the symbol that stands for the class of a symbol."""
        return self.symbols[self.classing[name]]


def find_trials(model: onnx.ModelProto, inputs: Sequence[Declared], lengths: Collection[str] = ()) -> Trials | None:
    """Return inputs of several sizes on which the graph runs, None where none are found.

    Args:
        model: The graph.
        inputs: As declared, or as the caller said.
        lengths: Inputs that say how many steps a row has.
    """
    try:
        foreign = Foreign(model)
    except ExportError:
        return None
    counts = {item.name for item in inputs if item.name in lengths or _looks_like_a_length(item)}
    readings = read_shapes(model, inputs)
    for reading in (readings.sure, readings.likely):
        names = _joined(reading, inputs)
        joined = [replace(item, dims=_renamed(item.dims or (), names)) for item in inputs]
        for classing, scale in itertools.product(_classings(joined), _SCALES):
            for counted in _counted(joined, classing, counts):
                trials = _trials(foreign, joined, classing, scale, counts, counted)
                if trials is not None:
                    every = {dim: classing[name] for dim, name in names.items() if isinstance(name, str)}
                    return replace(trials, classing={**classing, **every})
    return _of_usual_width(foreign, inputs, counts)


def _of_usual_width(foreign: Foreign, inputs: Sequence[Declared], counts: Collection[str]) -> Trials | None:
    """Try widths that features often have, where the only input leaves its last axis free too."""
    dims = inputs[0].dims or () if len(inputs) == 1 else ()
    if len(dims) < 2 or not isinstance(dims[-1], str) or dims[-1] in {BATCH, TIME}:
        return None
    for width, scale in itertools.product(_WIDTHS, _SCALES):
        sized = [replace(inputs[0], dims=(*dims[:-1], width))]
        trials = _trials(foreign, sized, next(_classings(sized)), scale, counts, None)
        if trials is not None:
            return trials
    return None


def _joined(reading: Reading, inputs: Sequence[Declared]) -> dict[str, int | str]:
    """Return what the graph says of symbols: a size that it asks for, or another symbol that must be equal."""
    names: dict[str, int | str] = {}
    dims = {item.name: item.dims or () for item in inputs}
    for axis in reading.axes:
        symbols = [dim for name, place in axis.places if isinstance(dim := dims[name][place], str)]
        for symbol in symbols:
            names.setdefault(symbol, axis.size if isinstance(axis.size, int) else symbols[0])
    return names


def observe(model: onnx.ModelProto, trials: Trials, names: Collection[str]) -> dict[str, list[Array]]:
    """Return values at the top of the graph by name, one of each trial; without those that it does not compute.

    Raises:
        ExportError: The graph does not run with these values as outputs.
    """
    known = {item.name for item in model.graph.input} | {item.name for item in model.graph.initializer}
    computed = {name for node in model.graph.node for name in node.output} - known
    asked = copied(model)
    told = {item.name for item in model.graph.output}
    wanted = sorted({name for name in names if name in computed} | (set(names) & told))
    del asked.graph.output[:]
    asked.graph.output.extend([ValueInfoProto(name=name) for name in wanted])
    if not wanted:
        return {}
    foreign = Foreign(asked)
    runs = [foreign.run(feeds) for feeds in trials.feeds]
    return {name: [run[name] for run in runs] for name in wanted}


def extents(arrays: Sequence[Array], trials: Trials) -> tuple[Extent, ...] | None:
    """Return how each axis of a value follows the symbols; None where the number of axes changes."""
    if len({array.ndim for array in arrays}) != 1:
        return None
    return tuple(_extent([array.shape[axis] for array in arrays], trials) for axis in range(arrays[0].ndim))


def _extent(sizes: Sequence[int], trials: Trials) -> Extent:
    base = sizes[0]
    moved = [index for index, size in enumerate(sizes[1:]) if size != base]
    if not moved:
        return Extent(base)
    if len(moved) > 1:
        return Extent(base, is_mixed=True)
    index = moved[0]
    before, after = trials.sizes[0][index], trials.sizes[index + 1][index]
    factor = Fraction(sizes[index + 1] - base, after - before)
    offset = base - factor * before
    return Extent(base, trials.symbols[index], factor, math.floor(offset), is_mixed=offset.denominator != 1)


def _looks_like_a_length(item: Declared) -> bool:
    return len(item.dims or ()) <= 1 and item.dtype.startswith("int") and is_length(item.name)


def _free(inputs: Sequence[Declared]) -> list[str]:
    """Return the symbols of inputs, the unlikelier times first."""
    found = dict.fromkeys(dim for item in inputs for dim in item.dims or () if isinstance(dim, str))
    places = {
        name: min((item.dims or ()).index(name) for item in inputs if name in (item.dims or ())) for name in found
    }
    return sorted(found, key=lambda name: (time_likelihood(name) if not name.startswith("?") else 0.0, places[name]))


def _classings(inputs: Sequence[Declared]) -> Iterator[Classing]:
    """Yield ways to say which symbols are one: none, then two classes, those by place in front."""
    names = _free(inputs)
    for order in (names, names[::-1]):
        yield {name: index for index, name in enumerate(order[: len(_SIZES)])} | dict.fromkeys(order[len(_SIZES) :], 0)
        if len(names) < 2:
            return
    places = {name: min(1, _place(name, inputs)) for name in names}
    seen = [places]
    if set(places.values()) == {0, 1}:
        yield places
    for chosen in itertools.islice(itertools.product((0, 1), repeat=min(len(names), 12)), _MOST_CLASSINGS):
        classing = dict(zip(names, chosen, strict=False)) | dict.fromkeys(names[12:], 0)
        if classing not in seen and set(classing.values()) == {0, 1}:
            seen.append(classing)
            yield classing


def _place(name: str, inputs: Sequence[Declared]) -> int:
    return max((item.dims or ()).index(name) for item in inputs if name in (item.dims or ()))


def _counted(inputs: Sequence[Declared], classing: Classing, counts: Collection[str]) -> Iterator[int | None]:
    """Yield what an input of lengths may count: a class that it has no axis of, the likeliest times first."""
    if not counts:
        yield None
        return
    own = {classing[dim] for item in inputs if item.name in counts for dim in item.dims or () if isinstance(dim, str)}
    yield from sorted({*classing.values()} - own, reverse=True)
    yield None


def _trials(
    foreign: Foreign,
    inputs: Sequence[Declared],
    classing: Classing,
    scale: int,
    counts: Collection[str],
    counted: int | None,
) -> Trials | None:
    num_classes = max(classing.values(), default=-1) + 1
    base = tuple(size * (scale if index else 1) for index, size in enumerate(_SIZES[:num_classes]))
    if num_classes == 1:
        base = (_SIZES[1] * scale,)
    every = [base]
    for index in range(num_classes):
        step = 1 if index == 0 and num_classes > 1 else 4 * scale
        every.append((*base[:index], base[index] + step, *base[index + 1 :]))
    feeds = []
    for sizes in every:
        rng = np.random.default_rng(0)
        fed: Arrays = {}
        for item in inputs:
            shape = _sized(item, sizes, classing)
            if math.prod(shape) > _MOST_ELEMENTS:
                return None
            if item.name in counts:
                fed[item.name] = np.full(shape, 1 if counted is None else sizes[counted], item.dtype)
            else:
                fed[item.name] = random_array(item.dtype, shape, rng)
        try:
            foreign.run(fed)
        except ExportError:
            return None
        feeds.append(fed)
    symbols = tuple(next(name for name, other in classing.items() if other == index) for index in range(num_classes))
    return Trials(tuple(feeds), tuple(every), symbols, classing)


def _sized(item: Declared, sizes: Sequence[int], classing: Classing) -> tuple[int, ...]:
    dims = item.dims or ()
    return tuple(dim if isinstance(dim, int) else sizes[classing[dim]] for dim in dims)


def _renamed(dims: Sequence[int | str], names: Mapping[str, int | str]) -> tuple[int | str, ...]:
    return tuple(names.get(dim, dim) if isinstance(dim, str) else dim for dim in dims)
