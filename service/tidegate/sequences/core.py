"""What sequences ask of the core, and what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from tidegate.core import StepResult, Tensor
from tidegate.sequences.ids import Key

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


class SequenceCore(Protocol):
    """What sequences need of the core; sessions are named by id."""

    async def open_sequence(self, model: str, version: str, session: str) -> str:
        """Open the session and return the version that it runs on; no session of this id is open before."""

    async def find_sequence(self, model: str, session: str) -> str | None:
        """Return the version of a session that a store has kept; None where there is none."""

    async def close_sequence(self, session: str, *, is_restart: bool) -> None:
        """End the session; one that has ended already is no error."""

    async def stamp(self, session: str) -> float | None:
        """What tells a session from another of the same id, which another server may have opened; None: nobody else
        can have.
        """

    def is_open(self, session: str) -> bool:
        """Whether the session has not ended. It never waits."""

    def step_sequence(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None
    ) -> Result:
        """Let the steps wait behind the session's other work, and return at once.

        Raises:
            SessionEndedError, NotFoundError: The session is over.
        """
