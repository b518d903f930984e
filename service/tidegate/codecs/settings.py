"""Settings: inputs of a graph that are neither sequence nor state; a caller may set them, for a session or a request.

Knows shapes and dtypes. Which value holds where several are given is the engine's to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tidegate.api import InputValue, Tensor
from tidegate.bundle import SettingSpec
from tidegate.codecs.rows import MOST_WHOLE
from tidegate.errors import InvalidInputError, known_names, listed, shown

Given = tuple[Tensor | None, ...]
"""A value of each setting, of one row, in the manifest's order; None where none is given. Empty: none at all is."""


class SettingsCodec:
    """The settings of one model.

    Attributes:
        defaults: What each is where nobody gives a value, in the shape of one row.
    """

    def __init__(self, specs: Sequence[SettingSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self.defaults: tuple[Tensor, ...] = tuple(default_of(spec) for spec in specs)

    def encode(self, values: Sequence[InputValue]) -> Given:
        """Return what is given, each in the shape and dtype of one row.

        Raises:
            InvalidInputError: There is no such setting, or the value does not fit.
        """
        if not values:
            return ()
        given: dict[str, Tensor] = {}
        for value in values:
            spec = self._specs.get(value.name)
            if spec is None:
                raise InvalidInputError(self._unknown(value.name), reason="UNKNOWN_INPUT")
            given[spec.name] = _encode(spec, value)
        return tuple(given.get(name) for name in self._specs)

    def _unknown(self, name: str) -> str:
        if not self._specs:
            return f"inputs: this model has none beside its sequence, so no {shown(name)}"
        return f"inputs: unknown name {shown(name)}{known_names(name, self._specs, 'the model has')}"


def default_of(spec: SettingSpec) -> Tensor:
    """Return a setting's default, in the shape of one row."""
    numbers = np.asarray(spec.default, np.float64)
    full = np.full(spec.row_shape, numbers[0]) if len(numbers) == 1 else numbers.reshape(spec.row_shape)
    return full.astype(spec.dtype)


def _encode(spec: SettingSpec, value: InputValue) -> Tensor:
    name, shape, _ = value
    doubles = value.numbers
    if doubles.size != math.prod(shape) or _longer(shape) != _longer(spec.row_shape):
        wanted = f"the shape {list(spec.row_shape)}" if _longer(spec.row_shape) else "one number"
        raise InvalidInputError(
            f"inputs: {name} takes {wanted}, not {_described(shape, doubles.size)}", reason="WRONG_SHAPE"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        array = doubles.astype(spec.dtype)
    is_float = array.dtype.kind == "f"
    fits = np.isfinite(array) if is_float else (array == doubles) & (np.abs(doubles) < MOST_WHOLE)
    if not fits.all():
        wrong = doubles[int(np.argmin(fits))]
        raise InvalidInputError(f"inputs: {name} is {spec.dtype}, which {wrong:g} is not", reason="NOT_FINITE")
    return array.reshape(spec.row_shape)


def _longer(shape: Sequence[int]) -> list[int]:
    """Return a shape without its ones: they do not change which number is which."""
    return [size for size in shape if size != 1]


def _described(shape: Sequence[int], size: int) -> str:
    return f"[{listed(map(str, shape))}]" if shape else "one number" if size == 1 else f"{size} numbers"
