"""Sampling of next tokens, a batch at once, with random numbers that depend on nothing but a seed and a position.

So a generation that is cut off and goes on elsewhere, in other company, draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tidegate.api import Sampling, Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def uniform(seed: int, counter: int) -> float:
    """Return a number in [0, 1) for (seed, counter): SplitMix64's output function (Steele, Lea, Flood 2014) over
    both, 53 bits kept.
    """
    return (_mix(_mix(seed & _MASK) + counter * _GAMMA) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    z = (value + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def sample(logits: Tensor, samplings: Sequence[Sampling], randoms: Sequence[float]) -> list[int]:
    """Draw one token a row.

    Temperature divides the logits; then only the ``top_k`` most probable are kept, then of these the smallest set whose
    probability reaches ``top_p`` (nucleus sampling, Holtzman et al. 2020); the draw inverts the cumulative
    distribution at the row's random number.

    Args:
        logits: [rows, vocabulary].
        samplings: One a row.
        randoms: One in [0, 1) a row.
    """
    if all(sampling.temperature == 0 for sampling in samplings):
        return [int(id_) for id_ in logits.argmax(axis=1)]
    order, weights = _ranked(logits, samplings)
    cumulative = weights.cumsum(axis=1)
    before = cumulative - weights
    top_p = np.array([sampling.top_p for sampling in samplings])[:, None]
    keep = (before < top_p * cumulative[:, -1:]) & (
        np.arange(logits.shape[1]) < _kept_ranks(samplings, logits.shape[1])
    )
    mass = (weights * keep).sum(axis=1)
    targets = np.asarray(randoms) * mass
    ranks = np.minimum((cumulative <= targets[:, None]).sum(axis=1), keep.sum(axis=1) - 1)
    return [int(id_) for id_ in order[np.arange(len(order)), ranks]]


def _kept_ranks(samplings: Sequence[Sampling], size: int) -> NDArray[np.int64]:
    """Return [rows, 1]: how many of the most probable tokens a row may draw from."""
    kept = [1 if sampling.temperature == 0 else min(sampling.top_k, size) or size for sampling in samplings]
    return np.array(kept, dtype=np.int64)[:, None]


def _ranked(logits: Tensor, samplings: Sequence[Sampling]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return ids by falling probability, and their softmax weights (the largest is 1) at the row's temperature."""
    scores = logits.astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = scores[np.arange(len(scores))[:, None], order]
    temperature = np.array([sampling.temperature or 1.0 for sampling in samplings])[:, None]
    with np.errstate(over="ignore"):  # a temperature near 0 divides beyond the largest float: its weight is 0
        weights = np.exp((ranked - ranked[:, :1]) / temperature)
    kept = _kept_ranks(samplings, logits.shape[1])
    return order, np.where(np.arange(logits.shape[1]) < kept, weights, 0.0)
