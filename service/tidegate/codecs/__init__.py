"""What a model's numbers mean: from a caller's input to tensors, and from tensors to a prediction, one module a task.

A codec sees arrays with the batch first and the time second. It knows no sessions, no scheduling and no transport.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tidegate.api import Input, Prediction, Predictions, StepOptions, Tensor
from tidegate.bundle import Bundle, ForecastCodec, TokenCodec
from tidegate.codecs.forecast import Forecasts
from tidegate.codecs.tensors import Tensors
from tidegate.codecs.tokens import Tokens

Outputs = Mapping[str, Tensor]
Piece = Mapping[str, Tensor]


class Codec(Protocol):
    """Encodes inputs and reads outputs of one model."""

    @property
    def kept_output(self) -> str | None:
        """The output whose last step stays with the session, so that generation can go on from it."""

    @property
    def surprise_unit(self) -> str:
        """Empty where the graph computes no surprise."""

    def encode(self, source: Input) -> tuple[Tensor, ...]:
        """Return the graph's inputs, each [steps, …].

        Raises:
            InvalidInputError: Saying what does not fit and where.
        """

    def reply_bytes(self, length: int, options: StepOptions) -> int:
        """Return about how large the reply to ``length`` steps will be, in bytes."""

    def read(self, outputs: Outputs, rows: slice | Sequence[int], length: int, top: int) -> Predictions:
        """Read the last step of whole chunks: ``rows`` of outputs [batch, time, …] that started and ended in this
        run of ``length`` steps.
        """

    def split(self, predictions: Predictions) -> list[Prediction]:
        """Return each row's own prediction."""

    def cut(self, outputs: Outputs, row: int, options: StepOptions, *, is_last: bool) -> Piece:
        """Reduce one row of a run to what the chunk's prediction will need of it."""

    def join(self, pieces: Sequence[Piece], length: int, options: StepOptions) -> Prediction:
        """Make the prediction of a chunk from the pieces of all its runs."""


def make_codec(bundle: Bundle) -> Codec:
    """Return the codec that the bundle's manifest asks for.

    Raises:
        BundleError: A codec file is missing or malformed.
    """
    spec = bundle.manifest.codec
    if isinstance(spec, TokenCodec):
        return Tokens.load(bundle, spec)
    if isinstance(spec, ForecastCodec):
        return Forecasts.load(bundle, spec)
    return Tensors.load(bundle, spec)
