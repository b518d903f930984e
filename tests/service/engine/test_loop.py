"""The bridge to asyncio: waiting, stopping, committing, and running beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.service.engine.house import house
from tidegate.api import Sampling
from tidegate.engine.loop import Loop
from tidegate.errors import UnavailableError

pytestmark = pytest.mark.usefixtures("arena")

LONG = "abcdefgabcdefgabcdefgabcdefgabcdefg"


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
    async with house() as it:
        reply = it.predict("abc")
        waiter = asyncio.create_task(it.loop.wait_idle())
        await asyncio.sleep(0)
        await it.loop.stop()
        await waiter
        assert isinstance(reply.exception(), UnavailableError)


async def test_runs_may_happen_beside_the_event_loop() -> None:
    async with house() as it:
        with ThreadPoolExecutor(1) as executor:
            loop = Loop(it.engine, it.runner, lambda: it.now, executor=executor)
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
