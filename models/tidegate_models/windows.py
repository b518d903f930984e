"""Cuts one long sequence into parallel streams and serves them window by window, for truncated back-propagation.

Knows positions and shapes; not what the elements mean. Any step's batch can be asked for at any time, so the place in
the data is just the number of steps done, and resuming needs no iterator state.

    a b c d e f g h i j k l   →   a b c d e f      streams = 2: the state of a row at the end of
                                  g h i j k l      one window is its state at the start of the next
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tidegate_models.errors import TrainingInputError


@dataclass(frozen=True, slots=True)
class Batch:
    """One window of every stream: `inputs` [B, T, ...], `targets` [B, T, ...]."""

    inputs: Tensor
    targets: Tensor
    is_first: bool
    """Whether the streams begin here, with an empty state."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Streams [B, N, ...] read left to right in windows of `window` steps, again and again.

    Every epoch begins at another offset (drawn from `seed` and the epoch alone), so window borders move.
    """

    inputs: Tensor
    targets: Tensor
    window: int
    seed: int

    @classmethod
    def batchify(cls, inputs: Tensor, targets: Tensor, *, streams: int, window: int, seed: int) -> Windows:
        """Lay `inputs` and `targets` [steps, ...] out as `streams` rows of equal length; the remainder is left out."""
        length = len(inputs) // streams
        if length < window:
            raise TrainingInputError(
                f"too little data: {len(inputs)} training steps are not enough for {streams} streams"
                f" with windows of {window} (at least {streams * window} are)"
            )
        rows = [part[: streams * length].reshape(streams, length, *part.shape[1:]) for part in (inputs, targets)]
        return cls(rows[0], rows[1], window, seed)

    @property
    def windows_per_epoch(self) -> int:
        """How many windows an epoch has; one less than fit, to leave room for the offset."""
        return max(1, self.inputs.shape[1] // self.window - 1)

    def at(self, step: int) -> Batch:
        """The batch of a step counted from 0 over all epochs."""
        epoch, index = divmod(step, self.windows_per_epoch)
        start = self._offset(epoch) + index * self.window
        span = slice(start, start + self.window)
        return Batch(self.inputs[:, span], self.targets[:, span], is_first=index == 0)

    def shard(self, rank: int, ranks: int) -> Windows:
        """The streams that process `rank` of `ranks` trains on."""
        if len(self.inputs) % ranks:
            raise TrainingInputError(f"{len(self.inputs)} streams cannot be shared evenly by {ranks} devices")
        return Windows(self.inputs[rank::ranks], self.targets[rank::ranks], window=self.window, seed=self.seed)

    def _offset(self, epoch: int) -> int:
        room = self.inputs.shape[1] - self.windows_per_epoch * self.window
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        return int(torch.randint(room + 1, (), generator=generator))
