"""What a caller of `tidegate import` may say, parsed: states, axes, constants, contexts.

Knows the command line's words. Whether they fit a graph is found out elsewhere.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tidegate.bundle import BATCH, TIME, Axis
from tidegate_export.errors import ExportError

Array: TypeAlias = NDArray[Any]

NONE = "none"
ANY = ""
"""The name under which an axis stands that holds for every input."""


@dataclass(frozen=True, slots=True)
class Context:
    """So many of the last elements of an input that the graph wants again in front of the next."""

    size: int
    is_time: bool = False
    """Counted along the time axis, not the last one."""


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """Everything that was said; what was not is found out."""

    file: Path
    name: str
    version: int | None = None
    out: Path = Path("bundles")
    states: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    """What a caller sends, contexts not included."""
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    time_axes: Mapping[str, int | None] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    contexts: Mapping[str, Context] = field(default_factory=dict)
    initial: Path | None = None
    is_within_frame: bool = False
    """Recurrent layers without state run across each frame, not along time: the caller says so."""
    tolerance: float | None = None


def parse_states(pairs: Iterable[str]) -> dict[str, str]:
    """Parse `in:out` items; names may hold colons themselves only where they come in pairs (`a::b:c::d`)."""
    found = {}
    for pair in pairs:
        left, separator, right = pair.replace("::", "\0").partition(":")
        if not separator or not left or not right:
            raise ExportError(f"--state {pair}: say INPUT:OUTPUT")
        found[left.replace("\0", "::")] = right.replace("\0", "::")
    if len(set(found.values())) < len(found):
        raise ExportError("--state: two states cannot come out of one output")
    return found


def parse_named(option: str, items: Iterable[str]) -> dict[str, str]:
    """Parse `NAME=VALUE` items."""
    found = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name or not value:
            raise ExportError(f"{option} {item}: say NAME=VALUE")
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
    """Parse `NAME=64` and `NAME=4@time` items."""
    found = {}
    for name, text in parse_named("--context", items).items():
        number, _, axis = text.partition("@")
        if not number.isdecimal() or not int(number) or axis not in {"", TIME}:
            raise ExportError(f"--context {name}={text}: say how many of the last elements, as in {name}=64 or 4@time")
        found[name] = Context(int(number), axis == TIME)
    return found


def parse_constant(name: str, text: str, dtype: str, dims: tuple[int | str, ...]) -> Array:
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
        raise ExportError(f"--constant {name}={text} is no {dtype} of shape {list(shape)}") from error
    if not is_exact:
        raise ExportError(f"--constant {name}={text}: {dtype} cannot hold that")
    return array


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
