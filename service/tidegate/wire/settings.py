"""Values of a model's settings as messages: ``inputs``, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, MutableMapping

import numpy as np

from tidegate.api import InputValue, check_inputs
from tidegate.errors import InvalidInputError, shown
from tidegate.limits import MAX_AXES
from tidegate.v1 import types_pb2

Inputs = MutableMapping[str, types_pb2.InputValue]


def fill_inputs(message: Inputs, values: Iterable[InputValue]) -> None:
    """Put values into a message's ``inputs``."""
    for value in values:
        entry, numbers = message[value.name], value.numbers.tolist()
        entry.values.extend(numbers)
        if len(value.shape) > 1 or (value.shape and len(numbers) == 1):
            entry.shape.extend(value.shape)


def decode_inputs(message: Inputs) -> tuple[InputValue, ...]:
    """The inverse of `fill_inputs`; a message has no order, so values come by rising name.

    Raises:
        InvalidInputError: A shape is none, or that of another number of values; or there are more than any model has.
    """
    if not message:
        return ()
    check_inputs(len(message))
    return tuple([_decode(name, message[name]) for name in sorted(message)])


def _decode(name: str, message: types_pb2.InputValue) -> InputValue:
    numbers, shape = np.array(message.values, "<f8"), tuple(message.shape)
    if not shape:
        shape = () if len(numbers) == 1 else (len(numbers),)
    if len(shape) > MAX_AXES or min(shape, default=1) < 0 or math.prod(shape) != len(numbers):
        raise InvalidInputError(f"inputs: {shown(name)} has {len(numbers)} values, its shape says otherwise")
    return InputValue(name, shape, numbers.tobytes())
