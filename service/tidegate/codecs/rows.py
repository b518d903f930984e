"""What the codecs share: checking what a graph takes and gives, rows of numbers, and surprise over a chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tidegate.api import Entry, FloatArray, Input, Rows, StepOptions, Surprise, Tensor
from tidegate.bundle import BATCH, TIME, Axis, Manifest, TensorSpec
from tidegate.errors import InvalidInputError

FEW = 16
"""Numbers that are made into objects at once."""

MOST_WHOLE = 2.0**53
"""Rows and settings are doubles: from here on, two whole numbers can be one double."""
_LARGEST = float(np.finfo(np.float32).max)


def check_input(manifest: Manifest, dtype: str, axes: tuple[Axis, ...]) -> None:
    """Raise ValueError unless the graph takes one input, of ``dtype``, whose axes but batch and time are ``axes``."""
    if len(manifest.inputs) != 1:
        raise ValueError(f"{len(manifest.inputs)} inputs, the codec makes one")
    (spec,) = manifest.inputs
    found = _axes_of_a_step(spec)
    if (
        spec.dtype != dtype
        or len(found) != len(axes)
        or any(isinstance(axis, int) and axis != wanted for axis, wanted in zip(found, axes, strict=True))
    ):
        raise ValueError(f"{spec.name} takes {spec.dtype} {list(found)} a step, the codec makes {dtype} {list(axes)}")


def check_output(manifest: Manifest, name: str, rank: int) -> tuple[Axis, ...]:
    """Return the axes of an output but batch and time; ValueError unless they are ``rank``, for each step."""
    try:
        found = _axes_of_a_step(manifest.output(name))
    except KeyError as error:
        raise ValueError(f"the codec names an output {error} that the graph has not") from error
    if len(found) != rank:
        raise ValueError(f"{name} gives {list(found)} a step, the codec reads {rank} axes")
    return found


def _axes_of_a_step(spec: TensorSpec) -> tuple[Axis, ...]:
    if spec.time_axis is None:
        raise ValueError(f"{spec.name} has no axis 'time'")
    return tuple(axis for axis in spec.axes if axis not in {BATCH, TIME})


def kind_of(source: Input) -> str:
    """Return which of ``text``, ``tokens`` and ``values`` is set; InvalidInputError unless exactly one is."""
    kinds = [name for name in ("text", "tokens", "values") if getattr(source, name) is not None]
    if len(kinds) != 1:
        raise InvalidInputError(f"an input has exactly one of text, tokens and values, this one has {kinds or 'none'}")
    return kinds[0]


def check_rows(values: FloatArray, features: Sequence[str], width: int) -> FloatArray:
    """Return ``values`` as float [steps, width], or raise InvalidInputError naming the step and feature that are
    wrong.
    """
    rows = np.asarray(values)
    if rows.ndim != 2 or rows.shape[0] == 0:
        if rows.size == 0:
            raise InvalidInputError("the sequence is empty: values need at least one row", reason="EMPTY_SEQUENCE")
        raise InvalidInputError("values must be rows of numbers")
    if rows.shape[1] != width:
        named = f" ({', '.join(features)})" if features else ""
        raise InvalidInputError(f"each row needs {width} values{named}, got {rows.shape[1]}", reason="WRONG_WIDTH")
    bad = np.argwhere(~(np.abs(rows) <= _LARGEST))  # NaN compares false
    if bad.size:
        step, column = bad[0]
        name = features[column] if features else f"column {column}"
        raise InvalidInputError(f"row {step}: {name} is not a finite number in single precision", reason="NOT_FINITE")
    return rows


def check_tokens(tokens: Sequence[int], size: int | None) -> Tensor:
    """Return ``tokens`` as int64 [steps]; InvalidInputError where empty or out of [0, size)."""
    try:
        ids = np.asarray(tokens, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise InvalidInputError("tokens must be whole numbers", reason="TOKEN_OUT_OF_RANGE") from error
    if ids.size == 0:
        raise InvalidInputError("the sequence is empty: it needs at least one token", reason="EMPTY_SEQUENCE")
    if size is not None and ((ids < 0) | (ids >= size)).any():
        where = int(np.argmax((ids < 0) | (ids >= size)))
        raise InvalidInputError(
            f"token {ids[where]} at step {where} is out of range: ids go from 0 to {size - 1}",
            reason="TOKEN_OUT_OF_RANGE",
        )
    return ids


def told(make: Callable[..., list[Entry]], *arrays: Tensor) -> Sequence[Entry]:
    """Return what ``make`` makes of arrays, [steps, …] each; of more than a few numbers, when it is asked for."""
    return make(*arrays) if max(len(arrays[0]), arrays[0].size) <= FEW else Rows(make, *arrays)


def mean_surprise(
    pieces: Sequence[Mapping[str, Tensor]], name: str | None, unit: str, options: StepOptions
) -> Surprise | None:
    """Return the surprise over all ``pieces``, whose array ``name`` is [steps]; None where the model has none."""
    if name is None:
        return None
    steps = np.concatenate([piece[name] for piece in pieces])
    # Single precision, as it travels and as it is stored: a repeat tells the same number.
    mean = float(np.float32(steps.mean(dtype=np.float64)))
    return Surprise(mean, unit, told(np.ndarray.tolist, steps) if options.every_step else None)
