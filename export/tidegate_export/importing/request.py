"""What a caller of `tidegate import` may say, parsed: states, axes, constants, contexts.

Knows the command line's words. Whether they fit a graph is found out elsewhere.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tidegate.bundle import BATCH, TIME, Axis
from tidegate.errors import known_names
from tidegate_export.errors import ExportError
from tidegate_export.meaning import SaidMeaning

Array: TypeAlias = NDArray[Any]

_MOST_ABOUT = 65_536
NONE = "none"
ANY = ""
"""The name under which an axis stands that holds for every input."""


@dataclass(frozen=True, slots=True)
class Context:
    """So many of the last elements of an input that the graph wants again in front of the next."""

    size: int
    axis: Axis | None = None
    """Axis of the file's tensor that they are counted along: its number from 0, or `time`. None: the last one."""
    keeps_axis: bool = False
    """An axis with one element left is sent as one, because --shape says so; else it is left out."""

    def __str__(self) -> str:
        return str(self.size) if self.axis is None else f"{self.size}@{self.axis}"


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """Everything that was said; what was not is found out."""

    file: Path
    name: str
    version: int | None = None
    out: Path = Path("bundles")
    states: tuple[str, ...] = ()
    """Items `in:out`, or `none`; `read_roles` finds out which names they mean."""
    data: tuple[str, ...] = ()
    """Inputs that are no states."""
    shapes: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    """What a caller sends, contexts not included."""
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    time_axes: Mapping[str, int | None] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    """Defaults of inputs that callers may set."""
    contexts: Mapping[str, Context] = field(default_factory=dict)
    initial: Path | None = None
    is_within_frame: bool = False
    """Recurrent layers without state run across each frame, not along time: the caller says so."""
    tolerance: float | None = None
    reach: int | None = None
    """Steps that no memory outside of the states reaches back more than."""
    meaning: SaidMeaning = field(default_factory=SaidMeaning)
    command: str = ""
    """What was typed, to be repeated."""
    origin: str | None = None
    """Where the file comes from."""
    about: str | None = None
    """Markdown for the card."""


@dataclass(frozen=True, slots=True)
class SaidRoles:
    """Which inputs are states, and which are data, as far as the caller said so."""

    states: Mapping[str, str] = field(default_factory=dict)
    """Outputs by input."""
    is_complete: bool = False
    """There are no other states: at least one was named, or `none` was said."""
    data: frozenset[str] = frozenset()

    def may_be_state(self, name: str) -> bool:
        return name in self.states or not (self.is_complete or name in self.data)


def read_roles(request: ImportRequest, inputs: Collection[str], outputs: Collection[str]) -> SaidRoles:
    """Return the roles that `request` names, for a graph of these `inputs` and `outputs`.

    Raises:
        ExportError: A name is no name of the graph, or two options contradict each other.
    """
    is_none = NONE in request.states
    if is_none and set(request.states) != {NONE}:
        raise ExportError("--state none says that no input is a state: leave it out, or the other --state")
    states: dict[str, str] = {}
    for item in request.states if not is_none else ():
        name, output = _read_pair(item, inputs, outputs)
        if states.get(name, output) != output:
            raise ExportError(f"--state {item}: {name} comes out of {states[name]} already, as another --state says")
        if output in states.values() and name not in states:
            raise ExportError(f"--state {item}: two states cannot come out of one output")
        states[name] = output
    data = frozenset(_unquoted(name, inputs) for name in request.data)
    for name in sorted(data):
        if name not in inputs:
            raise ExportError(f"--data: the graph has no input {name!r}{known_names(name, sorted(inputs), 'it has')}")
    for first, names, second, others in (
        ("--state", states, "--data", data),
        ("--state", states, "--constant", request.constants),
        ("--data", data, "--constant", request.constants),
        ("--state", states, "--context", request.contexts),
        ("--setting", request.settings, "--state", states),
        ("--setting", request.settings, "--data", data),
        ("--setting", request.settings, "--constant", request.constants),
        ("--setting", request.settings, "--context", request.contexts),
    ):
        for name in names:
            if name in others:
                raise ExportError(f"{first} and {second} contradict each other on {name!r}: leave one out")
    return SaidRoles(states, bool(request.states), data | frozenset(request.contexts))


def _read_pair(item: str, inputs: Collection[str], outputs: Collection[str]) -> tuple[str, str]:
    """Split `in:out` where both sides are names of the graph: TensorFlow's names end in `:0`, others hold `::`."""
    colons = [at for at, letter in enumerate(item) if letter == ":"]
    splits = [(_unquoted(item[:at], inputs), _unquoted(item[at + 1 :], outputs)) for at in colons]
    fits = [(name, output) for name, output in splits if name in inputs and output in outputs]
    if len(fits) == 1:
        return fits[0]
    if fits:
        readings = " or ".join(f'\'"{name}":"{output}"\'' for name, output in fits)
        raise ExportError(f"--state {item} can be read in several ways: say {readings}")
    splits = [(name, output) for name, output in splits if name and output]
    if not splits:
        raise ExportError(f"--state {item}: say INPUT:OUTPUT, or none")
    name, output = next((pair for pair in splits if pair[0] in inputs), splits[-1])
    wrong, names = (output, outputs) if name in inputs else (name, inputs)
    raise ExportError(f"--state: the graph has no {wrong!r}{known_names(wrong, sorted(names), 'it has')}")


def _unquoted(text: str, names: Collection[str]) -> str:
    """Take quotation marks off a name that was put between them."""
    is_quoted = len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" and text not in names
    return text[1:-1] if is_quoted else text


def parse_named(option: str, items: Iterable[str]) -> dict[str, str]:
    """Parse `NAME=VALUE` items; a name may hold `=`, a value never does."""
    found: dict[str, str] = {}
    for item in items:
        name, separator, value = item.rpartition("=")
        if not separator or not name or not value:
            raise ExportError(f"{option} {item}: say NAME=VALUE")
        if found.get(name, value) != value:
            raise ExportError(f"{option}: {name} is said twice, {found[name]} and {value}")
        found[name] = value
    return found


def parse_shapes(items: Iterable[str]) -> dict[str, tuple[Axis, ...]]:
    """Parse `NAME=batch,time,80` items."""
    return {name: tuple(map(_axis, text.split(","))) for name, text in parse_named("--shape", items).items()}


def parse_axes(option: str, items: Iterable[str]) -> dict[str, int | None]:
    """Parse `1`, `none` and `NAME=1` items."""
    found: dict[str, int | None] = {}
    for item in items:
        name, _, text = item.rpartition("=")
        if text != NONE and not text.isdecimal():
            raise ExportError(f"{option} {item}: say an axis by its number from 0, or none")
        found[name or ANY] = None if text == NONE else int(text)
    return found


def parse_contexts(items: Iterable[str]) -> dict[str, Context]:
    """Parse `NAME=64`, `NAME=15@1` and `NAME=4@time` items."""
    found: dict[str, Context] = {}
    for name, text in parse_named("--context", items).items():
        number, at, axis = text.partition("@")
        is_axis = not at or axis == TIME or axis.isdecimal()
        if not number.isdecimal() or not int(number) or not is_axis:
            raise ExportError(
                f"--context {name}={text}: say how many of the last elements, and along which axis if not the last: "
                f"{name}=64, {name}=15@1 or {name}=4@time"
            )
        found[name] = Context(int(number), int(axis) if axis.isdecimal() else axis or None)
    return found


def parse_constant(name: str, text: str, dtype: str, dims: tuple[int | str, ...], option: str = "--constant") -> Array:
    """Return the constant for an input of these dims, axes of no fixed size with one element.

    Raises:
        ExportError: The text is no number or list of numbers, or does not fit.
    """
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in dims)
    try:
        value = np.asarray(json.loads(text.lower()))
        array: Array = np.broadcast_to(value.astype(dtype, casting="unsafe"), shape).copy()
        is_exact = bool(np.all(value == array)) or dtype.startswith("float")
    except (ValueError, TypeError, OverflowError) as error:
        raise ExportError(f"{option} {name}={text} is no {dtype} of shape {list(shape)}") from error
    if not is_exact:
        raise ExportError(f"{option} {name}={text}: {dtype} cannot hold that")
    return array


def read_about(path: str | None) -> str | None:
    """Read what the card is to say of the model: who made it, under which licence."""
    if path is None:
        return None
    try:
        text = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--about {path}: no readable text in UTF-8 ({error})") from error
    if len(text) > _MOST_ABOUT:
        raise ExportError(f"--about {path}: {len(text):,} characters, at most {_MOST_ABOUT:,} are put on a card")
    return text


def read_initial(path: Path | None) -> dict[str, Array]:
    """Read the arrays of an npz file by name; never a pickle."""
    if path is None:
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} is no npz file of plain arrays (np.savez(path, state=array))") from error


def _axis(text: str) -> Axis:
    text = text.strip()
    if text in {BATCH, TIME}:
        return text
    if not text.isdecimal() or not int(text):
        raise ExportError(f"--shape: {text!r} is neither batch nor time nor a size")
    return int(text)
