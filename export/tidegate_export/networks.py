"""Candidates made of our own networks: the state by name, and the surprise in the graph.

*Surprise* is how far the input of a step was from what the state before it predicted. The network's head sees nothing
but the top layer's h, so that prediction is `head(h[-1])`; for all but the first step of a chunk it is the output of
the step before. Running the head over [h before, h after every step] costs one row more than without surprise.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tidegate.bundle import ForecastCodec, Json, Manifest, StateSpec, TensorSpec, TokenCodec
from tidegate_export.candidate import ExportCandidate
from tidegate_export.stateful import expose

if TYPE_CHECKING:
    from tidegate_models.networks import RecurrentNetwork

VOCABULARY = "vocabulary.json"
SCALING = "scaling.json"

_EXAMPLE_TEXT = "to be, or not to "

States = tuple[Tensor, ...]


class _Scored(nn.Module):
    """A network that scores its inputs: `forward(x, *states) -> (outputs, surprise, *states)`."""

    def __init__(self, network: RecurrentNetwork) -> None:
        super().__init__()
        self.network: Any = expose(network).module

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Score x [batch, time, …] from states [layers, batch, hidden]."""
        network = self.network
        hidden, after = network.recurrent(network.encoder(x), states if network.cell == "lstm" else states[0])
        before = states[0][-1].unsqueeze(1)
        predictions = network.head(torch.cat((before, hidden), dim=1))  # [B, 1 + T, …]
        surprise = self.score(predictions[:, :-1], x)
        return (predictions[:, 1:], surprise, *(after if network.cell == "lstm" else (after,)))

    @abstractmethod
    def score(self, predicted: Tensor, x: Tensor) -> Tensor:
        """Return how far x was from what was `predicted` for it, [B, T]."""


class ScoredTokens(_Scored):
    """Surprise in bits: -log2 of the probability that the token had."""

    def score(self, predicted: Tensor, x: Tensor) -> Tensor:
        """Score tokens x [B, T] under logits [B, T, V]."""
        logit = predicted.gather(2, x.unsqueeze(2)).squeeze(2)
        return (predicted.logsumexp(2) - logit) / math.log(2)


class ScoredForecast(_Scored):
    """Surprise as a scaled error: |median - observed| over the seasonal naive forecast's mean absolute error."""

    def __init__(self, network: RecurrentNetwork, *, column: int, median: int, scale: float) -> None:
        """Take the target's encoded column, the median's index, and one scaled unit in units of the naive error."""
        super().__init__(network)
        self._column, self._median, self._scale = column, median, scale

    def score(self, predicted: Tensor, x: Tensor) -> Tensor:
        """Score x [B, T, columns] under quantiles [B, T, horizon, Q]."""
        return (predicted[:, :, 0, self._median] - x[:, :, self._column]).abs() * self._scale


def token_candidate(
    network: RecurrentNetwork,
    vocabulary: Mapping[str, Any],
    *,
    name: str,
    version: str,
    provenance: Mapping[str, Any],
    report: Mapping[str, Any],
) -> ExportCandidate:
    """Return the candidate of a language model; `vocabulary` is `{"tokens": […], "unknown": id or None}`."""
    manifest = Manifest(
        name=name,
        version=version,
        task="next_token",
        cell=network.cell,
        inputs=(TensorSpec(name="tokens", dtype="int64", axes=("batch", "time")),),
        outputs=(
            TensorSpec(name="logits", dtype="float32", axes=("batch", "time", len(vocabulary["tokens"]))),
            _surprise(),
        ),
        states=_states(network),
        codec=TokenCodec(vocabulary=VOCABULARY),
        provenance=dict(provenance),
    )
    return ExportCandidate(
        ScoredTokens(network), manifest, {VOCABULARY: as_json(vocabulary)}, report, _example(vocabulary["tokens"])
    )


def forecast_candidate(
    network: RecurrentNetwork,
    codec: ForecastCodec,
    transforms: Mapping[str, Mapping[str, Any]],
    *,
    name: str,
    version: str,
    provenance: Mapping[str, Any],
    report: Mapping[str, Any],
) -> ExportCandidate:
    """Return the candidate of a forecast; `transforms` are the features' in order, as the scaling file has them."""
    widths = [_width(transform) for transform in transforms.values()]
    target = list(transforms).index(codec.target)
    manifest = Manifest(
        name=name,
        version=version,
        task="forecast",
        cell=network.cell,
        inputs=(TensorSpec(name="values", dtype="float32", axes=("batch", "time", sum(widths))),),
        outputs=(
            TensorSpec(name="quantiles", dtype="float32", axes=("batch", "time", codec.horizon, len(codec.quantiles))),
            _surprise(),
        ),
        states=_states(network),
        features=tuple(transforms),
        codec=codec,
        provenance=dict(provenance),
    )
    module = ScoredForecast(
        network,
        column=sum(widths[:target]),
        median=codec.quantiles.index(0.5),
        scale=transforms[codec.target]["scale"] / codec.seasonal_naive_error,
    )
    files = {SCALING: as_json({"features": list(transforms.values())})}
    step = [round(transform.get("mean", 1)) for transform in transforms.values()]  # an ordinary value of each feature
    return ExportCandidate(module, manifest, files, report, {"values": [step]})


def _states(network: RecurrentNetwork) -> tuple[StateSpec, ...]:
    axes = (network.num_layers, "batch", network.hidden_size)
    names = ("h", "c") if network.cell == "lstm" else ("h",)
    return tuple(StateSpec(input=f"{it}_in", output=f"{it}_out", dtype="float32", axes=axes) for it in names)


def _surprise() -> TensorSpec:
    return TensorSpec(name="surprise", dtype="float32", axes=("batch", "time"))


def _width(transform: Mapping[str, Any]) -> int:
    return 2 if transform["kind"] == "cyclic" else 1


def _example(tokens: Sequence[str]) -> Json:
    """A text that the vocabulary can spell and that needs no quoting in a shell; token ids where there is none."""
    if set(_EXAMPLE_TEXT) <= set(tokens):
        return {"text": _EXAMPLE_TEXT}
    plain = [token for token in tokens if len(token) == 1 and token.isalnum()]
    return {"text": "".join(plain[:8])} if plain else {"tokens": [0]}


def as_json(value: Any) -> bytes:
    """Return a codec file's bytes."""
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"
