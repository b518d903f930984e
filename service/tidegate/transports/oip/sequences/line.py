"""What is known of a sequence by its key: the run of it that goes on, those that are over, the requests that wait."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from tidegate.transports.oip.sequences.core import Result, SequenceStep


@dataclass(slots=True, eq=False)
class Run:
    """A running sequence: its sessions, one a row, and the results that are due, in the order of the requests."""

    version: str
    sessions: list[str]
    due: deque[Result] = field(default_factory=deque)

    def expect(self, results: list[Result]) -> None:
        """Remember what is due; what was abandoned says nothing of what came before it."""
        while self.due and self.due[0].done():
            self.due.popleft()
        self.due.extend(results)


@dataclass(slots=True, eq=False)
class Line:
    """What is known of a key.

    ``run`` is its running sequence. ``over`` are those that ended by themselves, in a row of theirs at least: the
    worker will close what is left. ``waiting`` are requests that the worker will admit.
    """

    run: Run | None = None
    over: list[Run] = field(default_factory=list)
    waiting: deque[tuple[SequenceStep, list[Result]]] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None
