"""Large JSON, read and written in slices that give way to the event loop (`tidegate.slices`).

One call of the parser takes 340 ms for a body of 4 MB of short rows, and holds everybody up. So a large body is walked
value by value, and its long lists of numbers, or of rows of numbers, are parsed in windows of some kilobytes: a window
ends where an element ends, and is a list by itself. What such a list holds goes into arrays at once: as many objects
would take a hundred MB, and their end would take as long as their making.

Knows JSON. Knows nothing of what bodies mean.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json

from tidegate.api import Tensor
from tidegate.errors import InvalidInputError, TooLargeError
from tidegate.limits import MAX_JSON_DEPTH, MAX_JSON_ITEMS, MAX_STEPS
from tidegate.slices import Slices

Json = Any

_WINDOW = 16 * 1024
_ENTRIES = 32  # of a list that are written at once
_NUMBERS_AT_ONCE = 1024
_LONGEST_SCALAR = 4400  # a whole number has at most 4,300 digits
_LONGEST_STRING = 12 * MAX_STEPS + 2  # two escapes of six characters for each of a text's

_SPACE = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_END_OF_ROWS = re.compile(rb"\][ \t\n\r]*\]")
_SCALAR = re.compile(rb'[^ \t\n\r,\[\]{}":]{1,%d}' % _LONGEST_SCALAR)
_DTYPES = {int: np.int64, float: np.float64, bool: np.bool_}


class Pieces(tuple["Tensor | list[Json]", ...]):
    """A long list of numbers, or of rows of numbers, piece by piece: arrays, or lists where they do not fit into one.

    Rows of which some numbers are whole and some are not are doubles.
    """

    __slots__ = ()

    @property
    def num_entries(self) -> int:
        return sum(map(len, self))

    @property
    def is_row(self) -> bool:
        """Whether it is a list of numbers and nothing else."""
        return all(isinstance(piece, np.ndarray) and piece.ndim == 1 and piece.dtype.kind in "if" for piece in self)


def read(data: bytes, window: int = _WINDOW) -> Slices[Json]:
    """Read a JSON value; lists of numbers in it that are longer than a window, in bytes, are `Pieces`.

    Raises:
        InvalidInputError: It is none, or is nested too deep.
        TooLargeError: It has too many parts that are no numbers.
    """
    reader = _Reader(data, window)
    value = yield from reader.value()
    reader.end()
    return value


class _Reader:
    def __init__(self, data: bytes, window: int) -> None:
        self._data = data
        self._size = window
        self._place = len(BOM_UTF8) if data.startswith(BOM_UTF8) else 0
        self._depth = 0
        self._num_items = 0

    def value(self) -> Slices[Json]:
        """Read the value that comes next."""
        self._count(1)
        yield
        first = self._next()
        if first == b'"':
            return (yield from self._string())
        if first not in {b"{", b"["}:
            return self._scalar()
        self._depth += 1
        if self._depth > MAX_JSON_DEPTH:
            raise self._malformed(f"nested deeper than {MAX_JSON_DEPTH}")
        value = yield from (self._object() if first == b"{" else self._list())
        self._depth -= 1
        return value

    def _count(self, num_items: int) -> None:
        self._num_items += num_items
        if self._num_items > MAX_JSON_ITEMS:
            raise TooLargeError(
                f"a body has at most {MAX_JSON_ITEMS} objects, strings and lists: send several requests",
                reason="REQUEST_TOO_LARGE",
            )

    def end(self) -> None:
        """Make sure that nothing is left."""
        if self._next() != b"":
            raise self._malformed("more than one value")

    def _object(self) -> Slices[dict[str, Json]]:
        found: dict[str, Json] = {}
        self._place += 1
        if self._took(b"}"):
            return found
        while True:
            if self._next() != b'"':
                raise self._malformed("a key must be a string")
            key = yield from self._string()
            if not self._took(b":"):
                raise self._malformed("a key without a value")
            found[key] = yield from self.value()
            if self._took(b"}"):
                return found
            if not self._took(b","):
                raise self._malformed("a comma or } is missing")

    def _list(self) -> Slices[list[Json] | Pieces]:
        pieces: list[Tensor | list[Json]] = []
        self._place += 1
        if self._took(b"]"):
            return []
        while True:
            yield
            some = self._window()
            if some is None:
                value = yield from self.value()
                if isinstance(value, Pieces) and value.is_row:
                    value = np.concatenate(value)
                elif isinstance(value, list):
                    value = _compact(value)
                if pieces and isinstance(pieces[-1], list):
                    pieces[-1].append(value)
                else:
                    pieces.append([value])
            else:
                compact = _compact(some)
                if isinstance(compact, list):
                    self._count(sum(isinstance(each, list) for each in compact))
                pieces.append(compact if pieces or self._next() != b"]" else some)
            if self._took(b"]"):
                return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], list) else Pieces(pieces)
            if not self._took(b","):
                raise self._malformed("a comma or ] is missing")

    def _window(self) -> list[Json] | None:
        """Read as many elements as end within a window; None where the next is to be read by itself."""
        self._next()
        window = self._data[self._place : self._place + self._size]
        window = window[: min((place for place in map(window.find, (b'"', b"{", b"}")) if place >= 0), default=None)]
        elements = _rows(window) if window.startswith(b"[") else _numbers(window)
        if not elements:
            return None
        try:
            found: list[Json] = from_json(b"[%b]" % elements)
        except ValueError:
            return None
        self._place += len(elements)
        return found

    def _string(self) -> Slices[str]:
        """Read a string: its end is found window by window, the parser reads what is before it."""
        data, start = self._data, self._place
        place, size = start + 1, self._size
        while data[place : place + 1] != b'"':
            match = _STRING.match(data, place, place + size)
            assert match is not None
            if place + size >= len(data) and data[match.end() : match.end() + 1] != b'"':
                raise self._malformed("a string without an end")
            size = self._size if match[0] else size + 1  # an escape may be longer than a window
            place = match.end()
            yield
        if place - start > _LONGEST_STRING:
            raise TooLargeError(f"a string has at most {MAX_STEPS} characters", reason="REQUEST_TOO_LARGE")
        text: str = self._parsed(data[start : place + 1])
        self._place = place + 1
        return text

    def _scalar(self) -> Json:
        match = _SCALAR.match(self._data, self._place)
        if match is None:
            raise self._malformed("a value is missing")
        value = self._parsed(match[0])
        self._place = match.end()
        return value

    def _next(self) -> bytes:
        """Skip white space, and return the byte that comes next, none at the end."""
        match = _SPACE.match(self._data, self._place)
        assert match is not None
        self._place = match.end()
        return self._data[self._place : self._place + 1]

    def _took(self, byte: bytes) -> bool:
        is_next = self._next() == byte
        self._place += is_next
        return is_next

    def _parsed(self, data: bytes) -> Json:
        try:
            return from_json(data)
        except ValueError as error:
            raise self._malformed(str(error)) from None

    def _malformed(self, why: str) -> InvalidInputError:
        return malformed(self._data, f"{why} at byte {self._place}")


def malformed(data: bytes | str, why: str) -> InvalidInputError:
    """Return the error for text that is not JSON: of one in an encoding other than UTF-8, that it is."""
    start = data[:4] if isinstance(data, bytes) else b""
    # RFC 4627, 3: JSON begins with two characters of ASCII.
    for encoding, mark, is_wide in (
        ("UTF-32", (BOM_UTF32_LE, BOM_UTF32_BE), start.count(0) == 3),
        ("UTF-16", (BOM_UTF16_LE, BOM_UTF16_BE), start.count(0) == 2),
    ):
        if start.startswith(mark) or is_wide:
            return InvalidInputError(f"the text is {encoding}: send JSON in UTF-8", reason="INVALID_JSON")
    return InvalidInputError(f"malformed JSON: {why}", reason="INVALID_JSON")


def _numbers(window: bytes) -> bytes:
    """Return the elements of a list of numbers that end in a window."""
    close, opening = window.find(b"]"), window.find(b"[")
    if close >= 0:
        return b"" if 0 <= opening < close else window[:close]
    return b"" if opening >= 0 else window[: max(0, window.rfind(b","))]


def _rows(window: bytes) -> bytes:
    """Return the rows that end in a window; nothing where they are no flat rows."""
    end = _END_OF_ROWS.search(window)
    rows = window[: end.start() + 1 if end is not None else window.rfind(b"]") + 1]
    return rows if rows.count(b"[") == rows.count(b"]") else b""


def _compact(values: list[Json]) -> Tensor | list[Json]:
    """Return numbers of one kind, or rows of equally many numbers, as an array; what is none as it is."""
    kinds = set(map(type, values))
    if kinds == {list} and len(set(map(len, values))) == 1:
        kinds = set(map(type, chain.from_iterable(values))) or {int}
        if not kinds <= _DTYPES.keys() or (bool in kinds and len(kinds) > 1):
            return values
    elif len(kinds) != 1 or not kinds <= _DTYPES.keys():
        return values
    try:
        array: Tensor = np.array(values, np.float64 if float in kinds else _DTYPES[kinds.pop()])
    except OverflowError:
        return values
    return array


# ---- writing


def write(value: Json) -> Slices[bytes]:
    """Write a value as `dump` would; objects in it may hold iterators and arrays, which are lists of their entries."""
    parts: list[bytes] = []
    for part in _parts(value):
        parts.append(part)
        yield
    return b"".join(parts)


def _parts(value: Json) -> Iterator[bytes]:
    if isinstance(value, dict):
        before = b"{"
        for key, each in value.items():
            yield before + to_json(key) + b":"
            yield from _parts(each)
            before = b","
        yield b"}" if value else b"{}"
    elif isinstance(value, np.ndarray):
        yield from _parts_of_list(_entries(value))
    elif isinstance(value, Iterator):
        yield from _parts_of_list(value)
    else:
        yield to_json(value, inf_nan_mode="null")


def _parts_of_list(entries: Iterator[Json]) -> Iterator[bytes]:
    before, gathered = b"[", list[Json]()
    for entry in entries:
        if _is_large(entry):
            if gathered:
                yield before + to_json(gathered, inf_nan_mode="null")[1:-1]
                before, gathered = b",", []
            yield before
            yield from _parts(entry)
            before = b","
            continue
        gathered.append(entry)
        if len(gathered) == _ENTRIES:
            yield before + to_json(gathered, inf_nan_mode="null")[1:-1]
            before, gathered = b",", []
    if gathered:
        yield before + to_json(gathered, inf_nan_mode="null")[1:-1]
        before = b","
    yield b"[]" if before == b"[" else b"]"


def _is_large(entry: Json) -> bool:
    if isinstance(entry, dict):
        return any(isinstance(each, Iterator | np.ndarray) for each in entry.values())
    return isinstance(entry, Iterator | np.ndarray)


def _entries(array: Tensor) -> Iterator[Json]:
    """Return the entries of an array: as arrays where they are long, else as lists or numbers."""
    size = array[:1].size
    if size > _NUMBERS_AT_ONCE:
        yield from array
        return
    step = max(1, _NUMBERS_AT_ONCE // max(1, size))
    for start in range(0, len(array), step):
        yield from array[start : start + step].tolist()
