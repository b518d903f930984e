"""What callers give, checked by name: where a message refuses it, the error says which argument it is and what may be.

protobuf's own words ("bad argument type for built-in operation") name nothing. What fits is asked only after it has
refused, so that a call costs no more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tidegate.api import LAST_POSITION
from tidegate.errors import InvalidInputError

M = TypeVar("M")

ARGUMENT_ERRORS = (TypeError, ValueError, OverflowError)
"""What protobuf and numpy raise; text that UTF-8 cannot carry is a ValueError."""


class ArgumentKind(NamedTuple):
    """What an argument may be: in words, and whether a value is that."""

    words: str
    fits: Callable[[Any], bool]


def build(kind: Callable[..., M], **fields: Any) -> M:
    """Make a message.

    Raises:
        InvalidInputError: A field is not what it may be.
    """
    try:
        return kind(**fields)
    except ARGUMENT_ERRORS:
        raise argument_error(**fields) from None


def argument_error(**arguments: Any) -> InvalidInputError:
    """Return the error for arguments of which one does not fit: it names the first."""
    for name, value in arguments.items():
        kind = _KINDS.get(name)
        if kind is not None and (value is not None or len(arguments) == 1) and not kind.fits(value):
            return InvalidInputError(f"{name} must be {kind.words}, not {_shown(value)}")
    return InvalidInputError(f"one of {', '.join(arguments)} is not what it may be")


def as_list(name: str, given: Any, one: type | tuple[type, ...] = str) -> list[Any]:
    """Return what may be given one by one or as several: a text by itself is one, and not its letters.

    Raises:
        InvalidInputError: It is neither.
    """
    if isinstance(given, one):
        return [given]
    try:
        if isinstance(given, bytes | Mapping):
            raise TypeError
        return list(given)
    except TypeError:
        raise argument_error(**{name: given}) from None


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def is_id(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _is_whole(value: Any, least: int, most: int) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    try:
        return least <= operator.index(value) <= most
    except TypeError:
        return False


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def are(values: Any) -> bool:
        is_listed = isinstance(values, Collection | np.ndarray) and not isinstance(values, str | bytes | Mapping)
        return is_listed and (not isinstance(values, np.ndarray) or values.ndim == 1) and all(map(fits, values))

    return are


def _whole(most: int, least: int = 0) -> ArgumentKind:
    return ArgumentKind(f"a whole number from {least} to {most}", lambda value: _is_whole(value, least, most))


def _wholes(most: int, least: int = 0) -> ArgumentKind:
    return ArgumentKind(
        f"a list of whole numbers from {least} to {most}", _are(lambda value: _is_whole(value, least, most))
    )


def _is_table(value: Any) -> bool:
    try:
        return np.asarray(value, np.float32).ndim == 2
    except ARGUMENT_ERRORS:
        return False


_UINT32, _UINT64 = 2**32 - 1, 2**64 - 1
_TEXT = ArgumentKind("a text that UTF-8 can carry", _is_text)
_TEXTS = ArgumentKind("a text, or a list of texts", lambda value: _is_text(value) or _are(_is_text)(value))
_NUMBER = ArgumentKind("a number", is_number)
_FLAG = ArgumentKind("True or False", lambda value: isinstance(value, bool | np.bool_))

_KINDS: dict[str, ArgumentKind] = {
    "tls": ArgumentKind("True, False or a Tls", lambda _: False),
    "credentials": ArgumentKind("a token, a function that returns one, or grpc.CallCredentials", lambda _: False),
    "keepalive": ArgumentKind("a number of seconds above 0, or None", lambda _: False),
    "model": _TEXT,
    "version": ArgumentKind('a text, like "2"', _is_text),
    "id": _TEXT,
    "session": ArgumentKind("a session's id, of A-Z a-z 0-9 . _ ~ -", is_id),
    "name": _TEXT,
    "checkpoint": _TEXT,
    "text": _TEXT,
    "tokens": _wholes(2**63 - 1, -(2**63)),
    "values": ArgumentKind("rows of numbers, [step, feature]", _is_table),
    "inputs": ArgumentKind("a mapping of names to numbers or arrays of numbers", lambda _: False),
    "position": _whole(LAST_POSITION),
    "top": _whole(_UINT32),
    "every_step": _FLAG,
    "max_tokens": _whole(_UINT32),
    "temperature": _NUMBER,
    "top_k": _whole(_UINT32),
    "top_p": _NUMBER,
    "seed": _whole(_UINT64),
    "stop": _TEXTS,
    "durable": _FLAG,
    "drift": _FLAG,
    "ttl_seconds": _NUMBER,
    "idle_seconds": _NUMBER,
    "timeout": _NUMBER,
    "ids": _TEXTS,
    "count": _whole(_UINT32, 1),
    "snapshot": ArgumentKind("the bytes of a snapshot", lambda value: isinstance(value, bytes)),
    "sequences": ArgumentKind("a sequence, or a list of them: texts, tokens or values", lambda _: False),
    "sessions": ArgumentKind("sessions or their ids", lambda _: False),
    "first_lane": _whole(_UINT32),
    "lanes": _wholes(_UINT32),
    "lengths": _wholes(_UINT32),
    "positions": _wholes(LAST_POSITION),
}


def _shown(value: Any) -> str:
    return np.array2string(value, threshold=8) if isinstance(value, np.ndarray) else f"{value!r:.60}"
