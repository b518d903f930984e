"""What the training loop asks of a task: data, a network, a loss and held-out figures.

Knows no task in particular; `text` and `forecast` are the two there are.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from tidegate_models.networks import RecurrentNetwork
from tidegate_models.windows import Windows

Facts = dict[str, Any]
"""Plain values only (JSON's types): what is stored beside weights and in reports."""


class Task(Protocol):
    """A data set and what to learn from it."""

    @property
    def name(self) -> str:
        """`next_token` or `forecast`."""

    @property
    def unit(self) -> str:
        """What loss and validation are measured in; lower is better."""

    @property
    def windows(self) -> Windows:
        """The training split."""

    @property
    def codec(self) -> Facts:
        """How a caller's data becomes the network's inputs, and outputs become data again."""

    @property
    def data_facts(self) -> Facts:
        """Where the data comes from and how it is split."""

    def network_arguments(self) -> Facts:
        """The keyword arguments that `build_network` takes."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of one window, in `unit`."""

    def validate(self, network: RecurrentNetwork) -> float:
        """The figure on the validation split that chooses the best network, in `unit`."""

    def calibrated(self, network: RecurrentNetwork) -> RecurrentNetwork:
        """The network as it should be kept: `network` itself, or an adjusted copy."""

    def figures(self, network: RecurrentNetwork) -> Facts:
        """Held-out figures of a kept network, on the validation and the test split."""
