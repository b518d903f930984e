"""The fake core's sequences: sessions are counters, results wait until a test lets them go."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tidegate.api import KnownSession, Prediction, StepResult, Tensor
from tidegate.errors import PositionConflictError, SessionEndedError, TidegateError


@dataclass
class FakeSession:
    """``steps`` are the first values of the inputs that were applied; ``last`` is what a repeat is answered by."""

    version: str
    steps: list[float] = field(default_factory=list)
    last: tuple[int, bytes, StepResult] | None = None
    waiting: list[tuple[asyncio.Future[StepResult], tuple[Tensor, ...], int | None, bool]] = field(default_factory=list)

    @property
    def position(self) -> int:
        return len(self.steps)

    def recall(self, inputs: tuple[Tensor, ...], position: int) -> StepResult | None:
        if self.last is None or self.last[:2] != (position, inputs[0].tobytes()):
            return None
        return self.last[2]


@dataclass
class FakeSequences:
    """With ``is_holding`` steps wait until `release_sequence`. ``stored`` are sessions that a store has kept;
    ``sequence_failures`` fail the next steps of a session, one each; ``ended`` are sessions that ended by themselves,
    ``over`` those that ended with a step, ``closed`` those of both kinds that did not end by themselves, and whether by
    a restart.
    """

    is_holding: bool = False
    live: dict[str, FakeSession] = field(default_factory=dict)
    stored: dict[str, FakeSession] = field(default_factory=dict)
    sequence_failures: dict[str, list[TidegateError]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    over: dict[str, FakeSession] = field(default_factory=dict)
    closed: list[tuple[str, bool]] = field(default_factory=list)
    open_failure: TidegateError | None = None

    async def open_sequence(self, model: str, version: str, session: str) -> str:
        await asyncio.sleep(0)
        if self.open_failure is not None:
            raise self.open_failure
        assert session not in self.live
        self.ended.discard(session)
        self.over.pop(session, None)
        self.live[session] = FakeSession(version or "1")
        return self.live[session].version

    async def find_sequence(self, model: str, session: str) -> KnownSession | None:
        await asyncio.sleep(0)
        if session in self.over:
            return KnownSession(self.over[session].version, self.over[session].recall)
        if session in self.stored:
            self.live[session] = self.stored.pop(session)
        return KnownSession(self.live[session].version) if session in self.live else None

    async def close_sequence(self, session: str, *, is_restart: bool) -> None:
        await asyncio.sleep(0)
        self.closed.append((session, is_restart))
        self.live.pop(session, None)

    def is_open(self, session: str) -> bool:
        return session not in self.ended

    def step_sequence(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> asyncio.Future[StepResult]:
        if session in self.ended:
            raise SessionEndedError(f"session {session} has ended: nobody came", reason="SESSION_IDLE")
        result: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        if session in self.over and position is not None:
            again = self.over[session].recall(inputs, position)
            if again is not None:
                result.set_result(again)
                return result
        self.live[session].waiting.append((result, inputs, position, ends))
        if not self.is_holding:
            asyncio.get_running_loop().call_soon(self.release_sequence, session)
        return result

    def release_sequence(self, session: str) -> None:
        """Apply what waits, in order."""
        live = self.live.get(session)
        while live is not None and live.waiting:
            result, inputs, position, ends = live.waiting.pop(0)
            if not result.done():
                self._apply(session, live, result, inputs, position)
                if ends and result.exception() is None:
                    self.over[session] = self.live.pop(session)
                    self.closed.append((session, False))

    def _apply(
        self,
        name: str,
        live: FakeSession,
        result: asyncio.Future[StepResult],
        inputs: tuple[Tensor, ...],
        position: int | None,
    ) -> None:
        if self.sequence_failures.get(name):
            result.set_exception(self.sequence_failures[name].pop(0))
            return
        start, content = live.position, inputs[0].tobytes()
        if position not in {None, start}:
            if live.last is not None and live.last[:2] == (position, content):
                result.set_result(live.last[2])
            else:
                result.set_exception(PositionConflictError("not there", position=start))
            return
        live.steps += np.ravel(inputs[0]).tolist()
        reply = StepResult(name, live.position, Prediction(1, outputs={"sum": np.array([sum(live.steps)])}))
        live.last = (start, content, reply)
        result.set_result(reply)


def row(*values: float) -> tuple[Tensor, ...]:
    """One row's only input."""
    return (np.array(values, np.float32),)


def total(result: StepResult) -> float:
    outputs: dict[str, Any] = result.prediction.outputs or {}
    return float(outputs["sum"][0])
