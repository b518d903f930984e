"""The bridge to asyncio: waiting, stopping, committing, and running beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.service.engine.house import House, house
from tidegate.core import Sampling
from tidegate.engine.engine import Batch
from tidegate.engine.loop import Loop
from tidegate.engine.work import Work
from tidegate.errors import TidegateError, UnavailableError

pytestmark = pytest.mark.usefixtures("arena")

LONG = "abcdefgabcdefgabcdefgabcdefgabcdefg"


@dataclass
class Refusing:
    """A committer that refuses the sessions named, once each, and remembers how many works each batch ended."""

    names: set[str] = field(default_factory=set)
    ended: list[int] = field(default_factory=list)

    async def commit(self, batch: Batch) -> dict[Work, TidegateError]:
        await asyncio.sleep(0)
        ending = [work for _, work in batch.rows if not work.remaining]
        self.ended.append(len(ending))
        refused = [work for work in ending if work.session is not None and work.session.id in self.names]
        self.names -= {work.session.id for work in refused if work.session is not None}
        return {work: UnavailableError("the store is away") for work in refused}


async def test_what_cannot_be_committed_fails_alone_and_its_session_is_untouched() -> None:
    committer = Refusing()
    async with house(committer=committer) as it:
        sessions = [it.open() for _ in range(3)]
        await asyncio.gather(*(it.step(session, "ab") for session in sessions))
        before = it.state(sessions[1])
        committer.names = {"s1"}
        found = await asyncio.gather(*(it.step(session, "cd", 2) for session in sessions), return_exceptions=True)
        assert [type(result).__name__ for result in found] == ["StepResult", "UnavailableError", "StepResult"]
        assert it.state(sessions[1]) == before
        again = await it.step(sessions[1], "cd", 2)
        assert again.position == 4
        assert it.state(sessions[0])[1:] == it.state(sessions[1])[1:] == it.state(sessions[2])[1:]
        assert committer.ended == [3, 3, 1]


async def test_a_long_chunk_is_refused_whole() -> None:
    committer = Refusing({"s0"})
    async with house(committer=committer, max_piece=4) as it:
        session = it.open()
        with pytest.raises(UnavailableError, match="the store is away"):
            await it.step(session, LONG)
        assert session.position == 0
        assert (await it.step(session, LONG, 0)).position == len(LONG)


async def test_a_refused_token_ends_the_generation_after_the_last_committed_one() -> None:
    committer = Refusing()
    async with house(committer=committer) as it:
        session = it.open()
        stream = it.generate(session, "abc", Sampling(max_tokens=9, seed=1), position=0)
        it.runner.during[4] = lambda: committer.names.add("s0")
        with pytest.raises(UnavailableError):
            await stream.reply
        assert session.position == 3 + len(stream.tokens) == 6
        done = await it.generate(session, "abc", Sampling(max_tokens=9, seed=1), position=0).reply
        free = await it.generate(None, "abc", Sampling(max_tokens=9, seed=1)).reply
        assert done == free


class Failing:
    """A committer that is broken."""

    async def commit(self, batch: Batch) -> dict[Work, TidegateError]:
        raise OSError("no route to the store")


async def test_a_committer_that_breaks_fails_the_run_and_commits_nothing() -> None:
    async with house(committer=Failing()) as it:
        session = it.open()
        found = await asyncio.gather(it.step(session, "a"), it.step(session, LONG), return_exceptions=True)
        assert [type(error).__name__ for error in found] == ["InternalError"] * 2
        assert session.position == 0


@dataclass
class Closing:
    """A committer during whose work something happens."""

    it: House | None = None

    async def commit(self, batch: Batch) -> dict[Work, TidegateError]:
        if self.it is not None:
            it, self.it = self.it, None
            it.end(it.sessions[0])
        return {}


@pytest.mark.parametrize("chunk", ["a", LONG])
async def test_a_session_may_be_closed_during_the_commit(chunk: str) -> None:
    committer = Closing()
    async with house(committer=committer, max_piece=8) as it:
        session = it.open()
        reply, behind = it.step(session, chunk), it.step(session, "b")
        committer.it = it
        results = await asyncio.gather(reply, behind, return_exceptions=True)
        # What was committed before the end is told; what was not is not.
        assert type(results[0]).__name__ == ("StepResult" if chunk == "a" else "SessionEndedError")
        assert type(results[1]).__name__ == "SessionEndedError"
        assert (session.slot, it.arena.num_used) == (None, 0)


async def test_idle_comes_when_the_last_answer_is_given_even_if_asked_at_once() -> None:
    async with house() as it:
        await it.step(it.open(), "a")
        chunk, whole = it.step(it.open(), LONG), it.predict("abc")
        await it.loop.wait_idle()
        assert chunk.done()
        assert whole.done()
        await it.loop.wait_idle()


async def test_stopping_answers_what_waits_and_what_comes_later() -> None:
    async with house() as it:
        session = it.open()
        waiting = [it.step(session, "a"), it.step(session, "b"), it.step(it.open(), LONG)]
        await it.loop.stop()
        for reply in waiting:
            with pytest.raises(UnavailableError) as caught:
                await reply
            assert caught.value.reason == "DRAINING"
        with pytest.raises(UnavailableError):
            it.step(session, "c")


async def test_who_waits_for_idle_is_not_left_waiting_by_a_stop() -> None:
    async with house(committer=Never()) as it:
        reply = it.predict("abc")
        waiter = asyncio.create_task(it.loop.wait_idle())
        await asyncio.sleep(0)
        await it.loop.stop()
        await waiter
        assert isinstance(reply.exception(), UnavailableError)


class Never:
    """A committer that never comes back."""

    async def commit(self, batch: Batch) -> dict[Work, TidegateError]:
        await asyncio.Event().wait()
        raise AssertionError


async def test_runs_may_happen_beside_the_event_loop() -> None:
    async with house() as it:
        with ThreadPoolExecutor(1) as executor:
            loop = Loop(it.engine, it.runner, executor=executor, clock=lambda: it.now)
            await it.loop.stop()
            loop.start()
            it.loop = loop
            sessions = [it.open() for _ in range(8)]
            replies = [it.step(session, LONG) for session in sessions]
            gone = it.step(sessions[0], "abc")
            call_soon = asyncio.get_running_loop().call_soon_threadsafe
            it.runner.during[3] = lambda: call_soon(replies[7].cancel)
            found = await asyncio.gather(*replies[:7], gone)
            assert [result.position for result in found] == [len(LONG)] * 7 + [len(LONG) + 3]
            assert sessions[7].position in {0, len(LONG)}
            await loop.wait_idle()
            await loop.stop()


async def test_a_generations_events_come_before_its_reply_resolves() -> None:
    async with house() as it:
        stream = it.generate(None, "abc", Sampling(max_tokens=3, seed=0))
        done = await stream.reply
        assert stream.events[-1] is done
