"""Task ``stream``: a graph of which nothing is known but its tensors; they go in and come out as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tidegate.bundle import Bundle, TensorCodec, TensorSpec
from tidegate.codecs.rows import check_rows, check_tokens, kind_of
from tidegate.core import Ask, Input, Prediction, Tensor
from tidegate.errors import BundleError, InvalidInputError

_VALUE_BYTES = 20


class Tensors:
    """Passes rows or ids to the one input and returns the named outputs."""

    kept_output: str | None = None
    surprise_unit = ""

    def __init__(self, source: TensorSpec, features: Sequence[str], outputs: Sequence[TensorSpec]) -> None:
        self._source = source
        self._features = tuple(features)
        self._outputs = tuple(outputs)
        free = [axis for axis in source.axes if axis not in ("batch", "time")]
        self._takes_tokens = not free and source.dtype.startswith("int")
        self._width = free[0] if free else 1

    @classmethod
    def load(cls, bundle: Bundle, spec: TensorCodec) -> Tensors:
        manifest = bundle.manifest
        try:
            outputs = [manifest.output(name) for name in spec.outputs]
        except KeyError as error:
            raise BundleError(f"{bundle.path}: the codec names an output {error} that the graph has not") from error
        return cls(manifest.inputs[0], manifest.features, outputs)

    def encode(self, source: Input) -> tuple[Tensor, ...]:
        kind = kind_of(source)
        wanted = "tokens" if self._takes_tokens else "values"
        if kind != wanted:
            raise InvalidInputError(f"this model takes {wanted}, not {kind}", reason="WRONG_KIND")
        if source.values is None:
            return (check_tokens(source.tokens or (), None).astype(self._source.dtype),)
        width = self._width if isinstance(self._width, int) else np.shape(source.values)[-1]
        rows = check_rows(source.values, self._features, width).astype(self._source.dtype)
        return (rows if len(self._source.axes) > len({"batch", "time"} & set(self._source.axes)) else rows[:, 0],)

    def reply_bytes(self, length: int, ask: Ask) -> int:
        steps = length if ask.every_step else 1
        per_step = sum(_size(spec) for spec in self._outputs)
        return 64 + steps * per_step * _VALUE_BYTES

    def predict(self, outputs: Mapping[str, Tensor], rows: Sequence[int], length: int, top: int) -> list[Prediction]:
        ask = Ask(top)
        return [self.join([self.cut(outputs, row, ask, is_last=True)], length, ask) for row in rows]

    def cut(self, outputs: Mapping[str, Tensor], row: int, ask: Ask, *, is_last: bool) -> dict[str, Tensor]:
        piece = {}
        for spec in self._outputs:
            is_per_step = spec.time_axis is not None
            steps = outputs[spec.name][row] if is_per_step else outputs[spec.name][row][None]
            told = steps if ask.every_step and is_per_step else steps[-1:] if is_last else steps[:0]
            piece[spec.name] = told.copy()
        return piece

    def join(self, pieces: Sequence[Mapping[str, Tensor]], length: int, ask: Ask) -> Prediction:
        outputs = {spec.name: np.concatenate([piece[spec.name] for piece in pieces]) for spec in self._outputs}
        return Prediction(length, ask.every_step, outputs=outputs)


def _size(spec: TensorSpec) -> int:
    return int(np.prod([axis for axis in spec.axes if isinstance(axis, int)], dtype=np.int64))
