"""Durable sessions in the engine: nobody is told before a chunk is stored, and whoever was overtaken decides again from
the record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.service.engine.house import House, house
from tidegate.api import Sampling, StepOptions
from tidegate.engine.request import Outcome, Step, chunk
from tidegate.engine.session import DurableSession, LastReply
from tidegate.errors import PositionConflictError, SessionEndedError, UnavailableError

pytestmark = pytest.mark.usefixtures("arena")

LONG = "abcdefgabcdefgabcdefgabcdefgabcdefg"


@dataclass
class Record:
    """What is stored of a session."""

    revision: bytes = b""
    position: int = 0
    state: bytes = b""
    last: LastReply | None = None


@dataclass
class Records:
    """A committer over a dict.

    Attributes:
        away: Names of sessions whose next commit fails; nothing is stored then.
        during: Done in the middle of the next commit.
        ended: How many chunks each commit stored, or tried to.
    """

    it: House | None = None
    records: dict[str, Record] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    during: Callable[[], object] | None = None
    ended: list[int] = field(default_factory=list)
    num_reads: int = 0

    async def commit(self, steps: Sequence[Step]) -> list[Outcome]:
        await asyncio.sleep(0)
        during, self.during = self.during, None
        if during is not None:
            during()
        self.ended.append(len(steps))
        return [self._commit(step) for step in steps]

    def _commit(self, step: Step) -> Outcome:
        name = step.session.id
        if name in self.away:
            self.away.discard(name)
            return UnavailableError("the store is away")
        record = self.records.setdefault(name, Record())
        if record.revision != step.session.revision:
            return None
        revision = f"{name}-{len(self.ended)}".encode()
        self.records[name] = Record(revision, step.position, step.state, step.last)
        return revision

    async def refresh(self, session: DurableSession) -> None:
        assert self.it is not None
        await asyncio.sleep(0)
        self.num_reads += 1
        record = self.records.setdefault(session.id, Record())
        session.position, session.revision, session.last = record.position, record.revision, record.last
        self.it.engine.load(session, record.state)
        self.it.engine.resume(session)

    def rewind(self, name: str, record: Record) -> None:
        """Let another replica put the session back to where it was."""
        self.records[name] = Record(b"theirs", record.position, record.state)


async def test_what_cannot_be_committed_fails_alone_and_its_session_is_untouched() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        sessions = [it.open(durable=True) for _ in range(3)]
        await asyncio.gather(*(it.step(session, "ab") for session in sessions))
        before = it.state(sessions[1])
        records.away = {"s1"}
        found = await asyncio.gather(*(it.step(session, "cd", 2) for session in sessions), return_exceptions=True)
        assert [type(result).__name__ for result in found] == ["StepResult", "UnavailableError", "StepResult"]
        assert it.state(sessions[1]) == before
        again = await it.step(sessions[1], "cd", 2)
        assert again.position == 4
        assert it.state(sessions[0])[1:] == it.state(sessions[1])[1:] == it.state(sessions[2])[1:]
        assert records.ended == [3, 3, 1]


class Broken:
    """A caller that cannot be answered."""

    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        raise RuntimeError("broken")

    def set_exception(self, error: BaseException) -> None:
        raise RuntimeError("broken")


async def test_who_was_stored_beside_one_that_breaks_is_answered() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        broken, sound = it.open(durable=True), it.open(durable=True)
        inputs = (np.zeros(1, np.int64),)
        it.loop.submit(chunk(broken, inputs, StepOptions(), 0, None, Broken()))
        assert (await it.step(sound, "a", 0)).position == 1
        # The other was stored all the same.
        assert (await it.step(broken, "b", 1)).position == 2
        assert records.ended[0] == 2


async def test_a_long_chunk_is_stored_once_and_refused_whole() -> None:
    records = Records(away={"s0"})
    async with house(committer=records, max_piece=4) as it:
        records.it = it
        session = it.open(durable=True)
        with pytest.raises(UnavailableError, match="the store is away"):
            await it.step(session, LONG)
        assert session.position == 0
        assert (await it.step(session, LONG, 0)).position == len(LONG)
        assert records.ended == [1, 1]


async def test_a_repeat_and_a_conflict_are_told_from_the_record() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        session = it.open(durable=True)
        first = await it.step(session, "ab", 0)
        assert records.num_reads == 0
        assert await it.step(session, "ab", 0) == first
        with pytest.raises(PositionConflictError):
            await it.step(session, "ac", 0)
        assert records.num_reads == 2
        assert len(it.runner.runs) == 1


@pytest.mark.parametrize("position", [2, None])
async def test_an_overtaken_chunk_runs_again_from_the_record(position: int | None) -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        session, twin = it.open(durable=True), it.open()
        await it.step(session, "ab")
        there = records.records["s0"]
        # The record moves, to an equal state: position 2 is still where the chunk belongs.
        records.during = lambda: records.rewind("s0", there)
        result = await it.step(session, "cd", position)
        await it.step(twin, "ab")
        alone = await it.step(twin, "cd")
        assert (result.position, result.prediction) == (alone.position, alone.prediction)
        assert it.state(session) == it.state(twin)
        assert records.num_reads == 1


async def test_an_overtaken_chunk_whose_position_has_passed_is_a_conflict() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        session = it.open(durable=True)
        await it.step(session, "ab")
        old = records.records["s0"]
        await it.step(session, "cd")
        records.during = lambda: records.rewind("s0", old)
        with pytest.raises(PositionConflictError) as caught:
            await it.step(session, "ef", 4)
        assert caught.value.position == 2
        # What was stored is what goes on.
        assert (await it.step(session, "cd", 2)).position == 4


async def test_a_refused_token_ends_the_generation_after_the_last_committed_one() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        session = it.open(durable=True)
        stream = it.generate(session, "abc", Sampling(max_tokens=9, seed=1), position=0)
        it.runner.during[4] = lambda: records.away.add("s0")
        with pytest.raises(UnavailableError):
            await stream.reply
        assert session.position == 3 + len(stream.tokens) == 6
        done = await it.generate(session, "abc", Sampling(max_tokens=9, seed=1), position=0).reply
        free = await it.generate(None, "abc", Sampling(max_tokens=9, seed=1)).reply
        assert done == free


async def test_a_generation_that_is_overtaken_in_mid_way_ends_and_its_repeat_goes_on() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        session = it.open(durable=True)
        sampling = Sampling(max_tokens=9, seed=1)
        stream = it.generate(session, "abc", sampling, position=0)

        def overtake() -> None:
            record = records.records["s0"]
            records.records["s0"] = Record(b"theirs", record.position, record.state, record.last)

        it.runner.during[4] = lambda: setattr(records, "during", overtake)
        with pytest.raises(UnavailableError) as caught:
            await stream.reply
        assert caught.value.reason == "SESSION_MOVED"
        again = it.generate(session, "abc", sampling, position=0)
        done = await again.reply
        assert done == await it.generate(None, "abc", sampling).reply
        assert again.tokens[: len(stream.tokens)] == stream.tokens


async def test_runs_of_others_go_on_during_a_commit() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        slow, other = it.open(durable=True), it.open()
        told: list[str] = []
        gate = asyncio.Event()
        commit = records.commit

        async def wait_then_commit(steps: Sequence[Step]) -> list[Outcome]:
            await gate.wait()
            return await commit(steps)

        records.commit = wait_then_commit  # type: ignore[method-assign]
        reply = it.step(slow, "a")
        reply.add_done_callback(lambda _: told.append("slow"))
        for _ in range(3):
            await it.step(other, "b")
        assert told == []
        assert slow.position == 0
        gate.set()
        assert (await reply).position == 1


class Failing(Records):
    """A committer that is broken."""

    async def commit(self, steps: Sequence[Step]) -> list[Outcome]:
        raise OSError("no route to the store")


async def test_a_committer_that_breaks_fails_the_steps_and_commits_nothing() -> None:
    records = Failing()
    async with house(committer=records) as it:
        records.it = it
        session, other = it.open(durable=True), it.open()
        found = await asyncio.gather(it.step(session, "a"), it.step(other, "a"), return_exceptions=True)
        assert [type(error).__name__ for error in found] == ["InternalError", "StepResult"]
        assert session.position == 0


@pytest.mark.parametrize("chunk", ["a", LONG])
async def test_a_session_may_be_closed_during_the_commit(chunk: str) -> None:
    records = Records()
    async with house(committer=records, max_piece=8) as it:
        records.it = it
        session = it.open(durable=True)
        reply, behind = it.step(session, chunk), it.step(session, "b")
        records.during = lambda: it.end(session)
        results = await asyncio.gather(reply, behind, return_exceptions=True)
        # What was stored before the end is told; what was not is not.
        assert type(results[0]).__name__ == "StepResult"
        assert isinstance(results[1], SessionEndedError)
        assert (session.slot, it.arena.num_used) == (None, 0)
