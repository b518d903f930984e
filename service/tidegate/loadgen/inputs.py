"""Inputs for any model, from what the server says of it: random tokens of its vocabulary, or standard normal rows."""

from __future__ import annotations

import numpy as np

from tidegate.api import Input, ModelInfo
from tidegate.errors import ConfigurationError

POOL = 4096
"""Steps that are drawn once and sent again and again from changing places: drawing must cost less than sending."""


class InputSource:
    """Draws inputs.

    Args:
        steps: Tokens [pool] or values [pool, feature].
        longest: Steps of the longest input that will be asked for.
    """

    def __init__(self, steps: np.ndarray[tuple[int, ...], np.dtype[np.int64 | np.float32]], longest: int) -> None:
        self._steps = steps
        self._num_places = len(steps) - longest + 1
        self._place = 0

    def draw(self, length: int) -> Input:
        """An input of that many steps."""
        start = self._place % self._num_places
        self._place += length
        steps = self._steps[start : start + length]
        return Input(tokens=steps.tolist()) if steps.ndim == 1 else Input(values=np.asarray(steps, np.float32))


def source_for(info: ModelInfo, longest: int, seed: int, vocabulary: int | None = None) -> InputSource:
    """A source of inputs for the model; ``vocabulary`` is needed where the server cannot tell it.

    Raises:
        ConfigurationError: The model takes tokens and nobody knows how many there are.
    """
    rng = np.random.default_rng(seed)
    num_steps = POOL + longest
    if np.dtype(info.inputs[0].dtype).kind == "f":
        return InputSource(rng.standard_normal((num_steps, _width(info)), np.float32), longest)
    if vocabulary is None:
        vocabulary = _vocabulary(info)
    return InputSource(rng.integers(vocabulary, size=num_steps), longest)


def _width(info: ModelInfo) -> int:
    """Numbers of a row: the features, or, where they have no names, the fixed last axis of the input."""
    return len(info.features) or int(info.inputs[0].axes[-1])


def _vocabulary(info: ModelInfo) -> int:
    """A language model tells it by the width of its logits, the first output with a fixed last axis."""
    widths = [int(tensor.axes[-1]) for tensor in info.outputs if tensor.axes and tensor.axes[-1].isdecimal()]
    if info.task != "next_token" or not widths:
        raise ConfigurationError(f"{info.name} does not tell how many tokens it knows: say --vocabulary N")
    return widths[0]
