"""Clients that step sessions on and on, whatever happens to the servers, and log what they ask and are told.

Each takes any replica for each request, repeats what it has no answer to with the same position, and goes where a
conflict says that the session is. Two writers may share a session. What the answers mean is for `verify` to say.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from enum import Enum, auto

from tests.bundles import VOCABULARY
from tests.chaos.history import Asked, Conflict, Failure, History, Keep, Read, Rewind, Step, Told
from tests.chaos.transports import Transport
from tidegate.errors import (
    DeadlineExceededError,
    OverloadedError,
    PositionConflictError,
    TidegateError,
    UnavailableError,
)

UNKNOWN = (UnavailableError, DeadlineExceededError, OverloadedError)
"""After these a request may have been applied, or may yet be."""

LONGEST_CHUNK = 4
LONGEST_PAUSE = 0.4  # seconds
CHECKPOINTS = ("first", "second")


class Habit(Enum):
    """What a writer does beside plain steps."""

    PLAIN = auto()
    REPEATS = auto()
    """Sends what was answered again, and some chunks to two replicas at once."""
    REORDERS = auto()
    """Sends a chunk before the one that it follows."""
    REWINDS = auto()
    """Keeps checkpoints and goes back to them."""


class Writer:
    """One client with some sessions and a way to each replica."""

    def __init__(
        self,
        name: str,
        sessions: Sequence[str],
        transports: Sequence[Transport],
        habit: Habit,
        history: History,
        seed: int,
    ) -> None:
        self.name = name
        self.failed: list[str] = []
        self._sessions = dict.fromkeys(sessions, 0)
        self._transports = transports
        self._turn = {
            Habit.PLAIN: self._step,
            Habit.REPEATS: self._step_repeatedly,
            Habit.REORDERS: self._step_out_of_order,
            Habit.REWINDS: self._step_and_rewind,
        }[habit]
        self._history = history
        self._random = random.Random(f"{seed}/{name}")

    async def run(self, stop: asyncio.Event) -> None:
        """Step until told to stop; what is under way then is brought to its end."""
        while self._sessions and not stop.is_set():
            session = self._random.choice(list(self._sessions))
            await self._turn(session)

    async def settle(self, session: str, asked: Asked) -> Told:
        """Ask any replica, again and again, until there is an answer."""
        pause = 0.01
        while (told := await self.try_once(session, asked)) is None:
            await asyncio.sleep(self._random.uniform(0, pause))
            pause = min(LONGEST_PAUSE, 2 * pause)
        return told

    async def try_once(self, session: str, asked: Asked) -> Told | None:
        """Ask any replica; None where the outcome is unknown."""
        operation = self._history.begin(session, self.name, asked)
        try:
            told = await self._random.choice(self._transports).ask(session, asked)
        except PositionConflictError as error:
            told = Conflict(error.position)
        except UNKNOWN as error:
            self._history.lose(operation, error.reason)
            return None
        except TidegateError as error:
            told = Failure(error.reason)
        self._history.end(operation, told)
        return told

    async def _step(self, session: str) -> None:
        self._go_on(session, await self.settle(session, Step(self._sessions[session], self._chunk())))

    async def _step_repeatedly(self, session: str) -> None:
        step = Step(self._sessions[session], self._chunk())
        if self._random.random() < 0.2:
            await asyncio.gather(self.try_once(session, step), self.try_once(session, step))
        told = await self.settle(session, step)
        while self._random.random() < 0.2:
            await self.try_once(session, step)
        self._go_on(session, told)

    async def _step_out_of_order(self, session: str) -> None:
        first = Step(self._sessions[session], self._chunk())
        second = Step(first.start + len(first.tokens), self._chunk())
        await asyncio.gather(self.try_once(session, second), self.try_once(session, first))
        self._go_on(session, await self.settle(session, Read()))

    async def _step_and_rewind(self, session: str) -> None:
        choice = self._random.random()
        if choice < 0.1:
            await self.settle(session, Keep(self._random.choice(CHECKPOINTS)))
        elif choice < 0.2:
            # There may be no such checkpoint yet; and a rewind that was given up may still come: a conflict tells.
            told = await self.settle(session, Rewind(self._random.choice(CHECKPOINTS)))
            if not isinstance(told, Failure):
                self._go_on(session, told)
        else:
            await self._step(session)

    def _chunk(self) -> tuple[int, ...]:
        length = self._random.randint(1, LONGEST_CHUNK)
        return tuple(self._random.randrange(len(VOCABULARY)) for _ in range(length))

    def _go_on(self, session: str, told: Told) -> None:
        if isinstance(told, Failure):
            del self._sessions[session]
        else:
            self._sessions[session] = told.position
