"""What sequences ask of the core, and what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tidegate.api import StepResult, Tensor
from tidegate.transports.oip.sequences.ids import Key

Result = asyncio.Future[StepResult]


class SequenceStep(NamedTuple):
    """One request of a sequence.

    ``version`` is empty where the request left it open. ``rows`` are the graph's inputs of each row, [steps, …].
    ``refit`` makes them anew for the version that the sequence turns out to run on; their number stays.
    """

    key: Key
    version: str
    rows: Sequence[tuple[Tensor, ...]]
    start: bool = False
    end: bool = False
    position: int | None = None
    deadline: float | None = None
    refit: Callable[[str], Sequence[tuple[Tensor, ...]]] | None = None

    def on(self, version: str) -> SequenceStep:
        """The request as this version takes it; InvalidInputError where it does not."""
        return self if self.refit is None else self._replace(rows=self.refit(version))
