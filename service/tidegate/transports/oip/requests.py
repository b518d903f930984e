"""A request for inference and its reply, whichever transport they travel by; the one reader of parameters.

Parameters arrive as plain Python values: what JSON holds, or the value of an ``InferParameter``. Knows which there are
and what each may be. Knows nothing of models and sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tidegate.errors import InvalidInputError, NotSupportedError, known_names, shown
from tidegate.limits import MAX_PARAMETERS, MAX_SEQUENCE_ID_LENGTH, MAX_TENSORS
from tidegate.transports.oip.tensors import NamedTensor

SequenceId = int | str

_UINT64 = 1 << 64
_LONGEST_TIMEOUT = 10**15  # µs; longer ones are none


class Options(NamedTuple):
    """What a request's parameters say. ``timeout`` is in seconds; ``sequence`` None belongs to no sequence."""

    sequence: SequenceId | None = None
    start: bool = False
    end: bool = False
    timeout: float | None = None
    priority: int = 0
    position: int | None = None
    binary_output: bool = False


class InferRequest(NamedTuple):
    """One request. An empty ``version`` means the highest; without ``outputs`` all are wanted."""

    model: str
    version: str
    id: str
    options: Options
    inputs: Sequence[NamedTensor]
    outputs: Sequence[str] = ()


class InferReply(NamedTuple):
    """The reply to one request; ``position`` is the sequence's after it, told where the request gave one."""

    model: str
    version: str
    id: str
    outputs: Sequence[NamedTensor]
    position: int | None = None


NOTHING = Options()


def read_options(parameters: Mapping[str, Any]) -> Options:
    """Read a request's parameters.

    Raises:
        InvalidInputError: One is unknown, or of the wrong type or range; the message names it.
    """
    if not parameters:
        return NOTHING
    check_parameters(parameters)
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        reader = _READERS.get(name)
        if reader is not None:
            field, read = reader
            found[field] = read(name, value)
        elif not name.startswith("triton_"):
            raise _unknown(name, _READERS)
    options = Options(**found)
    if options.sequence is None and (options.start or options.end or options.position is not None):
        raise InvalidInputError(
            "sequence_start, sequence_end and tidegate_position need a sequence_id that is neither 0 nor empty",
            reason="NO_SEQUENCE_ID",
        )
    return options


def check_tensor_parameters(tensor: str, parameters: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Refuse what a tensor's own parameters ask for and is not served: shared memory, classification, the unknown."""
    check_parameters(parameters)
    for name in parameters:
        if name.startswith("shared_memory_"):
            raise NotSupportedError(f"tensor {shown(tensor)}: shared memory is not supported: send the values")
        if name == "classification":
            raise NotSupportedError(f"output {shown(tensor)}: classification is not supported: take the values")
        if name not in known and not name.startswith("triton_"):
            raise _unknown(name, known)


def check_count(num_inputs: int, num_outputs: int) -> None:
    """Raise InvalidInputError where a request names more tensors than any model has, before they are looked at."""
    if max(num_inputs, num_outputs) > MAX_TENSORS:
        raise InvalidInputError(
            f"a request names at most {MAX_TENSORS} inputs and {MAX_TENSORS} outputs, "
            f"not {num_inputs} and {num_outputs}",
            reason="TOO_MANY_TENSORS",
        )


def unique(names: Sequence[str], what: str) -> None:
    """Raise InvalidInputError where a tensor is named twice."""
    if len(names) > 1 and len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"{what} {shown(twice)} is there twice", reason="DUPLICATE_TENSOR")


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise InvalidInputError where there are more parameters than may be given, before they are looked at."""
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidInputError(
            f"at most {MAX_PARAMETERS} parameters may be given, not {len(parameters)}", reason="TOO_MANY_PARAMETERS"
        )


def _unknown(name: str, known: Iterable[str]) -> InvalidInputError:
    allowed = known_names(name, known, "the parameters are")
    return InvalidInputError(f"unknown parameter {shown(name)}{allowed}", reason="UNKNOWN_PARAMETER")


def _wrong(name: str, wanted: str, value: Any) -> InvalidInputError:
    found = (
        shown(value) if isinstance(value, str) else type(value).__name__ if isinstance(value, list | dict) else value
    )
    return InvalidInputError(f"parameter {name!r} must be {wanted}, not {found}", reason="BAD_PARAMETER")


def _sequence(name: str, value: Any) -> SequenceId | None:
    if type(value) is str and len(value) <= MAX_SEQUENCE_ID_LENGTH:
        return value or None
    if type(value) is int and 0 <= value < _UINT64:
        return value or None
    raise _wrong(
        name, f"an unsigned integer of 64 bits or a string of at most {MAX_SEQUENCE_ID_LENGTH} characters", value
    )


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(name, "true or false", value)
    return value


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < _UINT64:
        raise _wrong(name, "an unsigned integer", value)
    return value


def _timeout(name: str, value: Any) -> float | None:
    microseconds = _count(name, value)
    return microseconds / 1e6 if 0 < microseconds < _LONGEST_TIMEOUT else None


_READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "sequence_id": ("sequence", _sequence),
    "sequence_start": ("start", _flag),
    "sequence_end": ("end", _flag),
    "timeout": ("timeout", _timeout),
    "priority": ("priority", _count),
    "tidegate_position": ("position", _count),
    "binary_data_output": ("binary_output", _flag),
}
