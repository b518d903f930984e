"""Task ``stream``: a graph of which nothing is known but its tensors; they go in and come out as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tidegate.api import Input, Prediction, Predictions, StepOptions, Tensor
from tidegate.bundle import BATCH, TIME, Bundle, TensorCodec, TensorSpec
from tidegate.codecs.rows import MOST_WHOLE, check_rows, check_tokens, kind_of
from tidegate.errors import BundleError, InvalidInputError

_VALUE_BYTES = 20


class Tensors:
    """Passes rows or ids to the inputs and returns the named outputs.

    A row holds the columns of all inputs side by side, in the manifest's order; an input of several axes a step, say a
    frame of 2 × 80, takes its columns in C order. Where nothing declares how wide an input is, it takes any width.
    """

    kept_output: str | None = None
    surprise_unit = ""

    def __init__(self, sources: Sequence[TensorSpec], features: Sequence[str], outputs: Sequence[TensorSpec]) -> None:
        self._sources = tuple(sources)
        self._features = tuple(features)
        self._outputs = tuple(outputs)
        self._told = [(spec.name, spec.time_axis is not None) for spec in outputs]
        self._widths = [_width(source) for source in sources]
        self._takes_tokens = self._widths == [1] and sources[0].dtype.startswith("int")
        if None in self._widths and len(sources) > 1:
            raise BundleError("of several inputs, every one must say how wide it is")

    @classmethod
    def load(cls, bundle: Bundle, spec: TensorCodec) -> Tensors:
        manifest = bundle.manifest
        try:
            outputs = [manifest.output(name) for name in spec.outputs]
        except KeyError as error:
            raise BundleError(f"{bundle.path}: the codec names an output {error} that the graph has not") from error
        return cls(manifest.inputs, manifest.features, outputs)

    def encode(self, source: Input) -> tuple[Tensor, ...]:
        kind = kind_of(source)
        wanted = "tokens" if self._takes_tokens else "values"
        if kind != wanted:
            raise InvalidInputError(f"this model takes {wanted}, not {kind}", reason="WRONG_KIND")
        if source.values is None:
            tokens = check_tokens(source.tokens or (), None)
            return (_shaped(tokens[:, None], self._sources[0]),)
        widths = [np.shape(source.values)[-1] if width is None else width for width in self._widths]
        rows = check_rows(source.values, self._features, sum(widths))
        ends = np.cumsum(widths)
        return tuple(
            _shaped(rows[:, end - width : end], spec)
            for spec, width, end in zip(self._sources, widths, ends, strict=True)
        )

    def reply_bytes(self, length: int, options: StepOptions) -> int:
        steps = length if options.every_step else 1
        per_step = sum(_size(spec) for spec in self._outputs)
        return 64 + steps * per_step * _VALUE_BYTES

    def read(self, outputs: Mapping[str, Tensor], rows: slice | Sequence[int], length: int, top: int) -> Predictions:
        last = {
            spec.name: (outputs[spec.name][rows] if spec.time_axis is None else outputs[spec.name][rows, -1]).copy()
            for spec in self._outputs
        }
        return Predictions(length, outputs=last)

    def split(self, predictions: Predictions) -> list[Prediction]:
        outputs = predictions.outputs or {}
        num_rows = len(next(iter(outputs.values())))
        return [
            Prediction(
                predictions.length, outputs={name: array[row : row + 1].copy() for name, array in outputs.items()}
            )
            for row in range(num_rows)
        ]

    def cut(self, outputs: Mapping[str, Tensor], row: int, options: StepOptions, *, is_last: bool) -> dict[str, Tensor]:
        piece = {}
        for name, is_per_step in self._told:
            steps = outputs[name][row] if is_per_step else outputs[name][row : row + 1]
            if not (options.every_step and is_per_step):
                steps = steps[-1:] if is_last else steps[:0]
            piece[name] = steps.copy()
        return piece

    def join(self, pieces: Sequence[Mapping[str, Tensor]], length: int, options: StepOptions) -> Prediction:
        if len(pieces) == 1:
            outputs = dict(pieces[0])
        else:
            outputs = {spec.name: np.concatenate([piece[spec.name] for piece in pieces]) for spec in self._outputs}
        return Prediction(length, options.every_step, outputs=outputs)


def _frame(spec: TensorSpec) -> tuple[str | int, ...]:
    """Return the axes of one step of one row."""
    return tuple(axis for axis in spec.axes if axis not in {BATCH, TIME})


def _width(spec: TensorSpec) -> int | None:
    """Return how many columns of a row are an input's; None where one of its axes has no size."""
    sizes = [axis for axis in _frame(spec) if isinstance(axis, int)]
    return int(np.prod(sizes, dtype=np.int64)) if len(sizes) == len(_frame(spec)) else None


def _shaped(columns: Tensor, spec: TensorSpec) -> Tensor:
    """Return an input's columns [steps, width] as [steps, …], in its dtype.

    Raises:
        InvalidInputError: A number is beyond the dtype, or no whole number where it must be one.
    """
    dtype = np.dtype(spec.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        array = columns.astype(dtype)
    # That a row fits fp32 is known already; the commonest case is asked nothing.
    if dtype.kind != "f" or dtype.itemsize < 4:
        _check_held(columns, array, spec)
    sizes = [axis if isinstance(axis, int) else -1 for axis in _frame(spec)]
    return array.reshape(len(array), *sizes)


def _check_held(columns: Tensor, array: Tensor, spec: TensorSpec) -> None:
    is_held = np.isfinite(array) if array.dtype.kind == "f" else (array == columns) & (np.abs(columns) < MOST_WHOLE)
    if not is_held.all():
        step, column = np.argwhere(~is_held)[0]
        raise InvalidInputError(
            f"row {step}: {columns[step, column]:g} is no {spec.dtype}, as {spec.name} takes", reason="NOT_FINITE"
        )


def _size(spec: TensorSpec) -> int:
    return int(np.prod([axis for axis in spec.axes if isinstance(axis, int)], dtype=np.int64))
