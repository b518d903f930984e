"""What sequences ask of the core, and what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

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


class Known(NamedTuple):
    """A session of a sequence that its keeper knows: the version that it runs or ran on; of one that ended with a step,
    what answers a repeat of that step.
    """

    version: str
    recall: Callable[[tuple[Tensor, ...], int], StepResult | None] | None = None

    @property
    def is_running(self) -> bool:
        return self.recall is None


class SequenceCore(Protocol):
    """What sequences need of the core; sessions are named by id."""

    async def open_sequence(self, model: str, version: str, session: str) -> str:
        """Open the session and return the version that it runs on; no session of this id is open before."""

    async def find_sequence(self, model: str, session: str) -> Known | None:
        """Return what is known of a session by whoever keeps it, though it was not opened here, or has ended."""

    async def close_sequence(self, session: str, *, is_restart: bool) -> None:
        """End the session; one that has ended already is no error."""

    def is_open(self, session: str) -> bool:
        """Whether the session has not ended. It never waits."""

    def step_sequence(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> Result:
        """Let the steps wait behind the session's other work, and return at once.

        With ``ends`` the session is over when they are answered; a repeat, at the same position with the same inputs,
        is answered again.

        Raises:
            SessionEndedError, NotFoundError: The session is over.
        """
