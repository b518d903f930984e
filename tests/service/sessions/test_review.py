"""Histories that a second reader of the code thought of: what happens between any two lines, and who is told what."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle
from tests.clock import EPOCH, ManualClock
from tests.service.serving import collect, numbers, serving
from tests.service.sessions.replicas import MODEL, replicas, step
from tidegate.api import RAW, Input, Sampling, SessionRequest, StepResult
from tidegate.engine.request import chunk
from tidegate.errors import (
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    OverloadedError,
    SessionEndedError,
    UnavailableError,
)
from tidegate.sessions.ids import key_of

FORECAST = "tiny-forecast"
VALUES = Input(values=np.array([[20.0, 3.0]], np.float32))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(root, MODEL)
    write_tiny_forecast_bundle(root, FORECAST)
    return root


async def test_a_generation_that_begins_after_its_copy_left_the_arena(root: Path) -> None:
    async with replicas(root, 1, arena_mb=1, evict_idle=1e9) as they:
        (a,) = they
        await they.open()
        await step(a, "hello w", 0)
        events = a.generate_on_session("s", Input(text="or"), Sampling(max_tokens=3, temperature=0), position=7)
        before = a.statistics().num_evicted
        for index in range(3000):
            await they.open(f"other{index}")
        assert a.statistics().num_evicted > before
        _, done = await collect(events)
        assert done.position == 12
        told = (await step(a, "x", 12)).prediction
        np.testing.assert_allclose(
            numbers(told), numbers(await they.whole("hello wor" + done.text + "x")), rtol=1e-4, atol=1e-5
        )


async def test_a_rewind_that_slept_goes_to_the_checkpoint_of_that_name_now(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        await step(a, "zzz", 0)
        await a.checkpoint_session("s", "here")

        async def begin_anew() -> None:
            await b.close_session("s")
            await they.services[1].open_session(SessionRequest(MODEL, durable=True, id="s"))
            await step(b, "hel", 0)
            await b.checkpoint_session("s", "here")

        they.store.meanwhile["read_attachment"] = begin_anew
        assert (await a.rewind_session("s", "here")).position == 3
        told = (await step(a, "lo", 3)).prediction
        np.testing.assert_allclose(numbers(told), numbers(await they.whole("hello")), rtol=1e-4, atol=1e-5)


async def test_who_was_stepped_in_time_is_not_told_to_be_idle(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open(idle_seconds=10)
        waiting = []

        async def step_in_time() -> None:
            they.clock.now -= 5
            await step(b, "a", 0)
            waiting.append(a.step("s", Input(text="b")))
            they.clock.now += 5

        they.clock.now += 11
        they.store.meanwhile["read_summaries"] = step_in_time
        await a.expire()
        assert (await waiting[0]).position == 2


async def test_a_damaged_record_is_one_sessions_trouble(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with replicas(root) as they:
        a, b = they
        for name in ("damaged", "sound", "old"):
            await they.open(name, idle_seconds=10)
        they.store.damage("damaged")
        with pytest.raises(InternalError) as caught:
            await step(b, "a", id_="damaged")
        assert caught.value.reason == "STORE_CORRUPT"
        assert b.is_ready
        assert [info.id for info in (await b.list_sessions()).sessions] == ["old", "sound"]
        they.clock.now += 6
        assert (await step(b, "a", 0, "sound")).position == 1
        they.clock.now += 6
        await b.expire()
        assert b.is_ready
        with pytest.raises(SessionEndedError):
            await step(a, "a", id_="old")
        store = b.statistics().store
        assert store is not None
        assert store.num_damaged >= 3
        assert len([record for record in caplog.records if "is damaged" in record.message]) == 2  # one a moment
        # The ending of "old" was stored by b: a store that is asked for what is due has no more of it.
        assert await they.store.due(EPOCH + they.clock.now, 10) == []


@pytest.mark.parametrize("opener", [0, 1])
async def test_a_copy_of_an_id_that_is_another_models_by_now(root: Path, opener: int) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        await step(a, "hel", 0)
        await b.close_session("s")
        await they.services[opener].open_session(SessionRequest(FORECAST, durable=True, id="s"))
        assert (await a.step("s", VALUES, position=0)).position == 1


async def test_what_breaks_one_of_those_who_wait_for_a_session_is_nothing_to_the_others(root: Path) -> None:
    async with replicas(root) as they:
        _, b = they
        await they.open()
        broken = b.step("s", Input(tokens=["no number"]))  # type: ignore[list-item]
        sound = b.step("s", Input(text="a"))
        assert (await sound).position == 1
        assert isinstance(broken.exception(), InternalError)


async def test_who_holds_a_copy_that_left_the_arena_is_told_to_ask_again(root: Path) -> None:
    async with replicas(root, 1, arena_mb=1, evict_idle=1e9) as they:
        (a,) = they
        await they.open()
        await step(a, "hel", 0)
        held = await a._sessions.load("s")  # noqa: SLF001
        for index in range(3000):
            await they.open(f"other{index}")
        reply: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        inputs = held.model.codec.encode(Input(text="l"))
        held.model.loop.submit(chunk(held, inputs, RAW, None, None, reply))
        with pytest.raises(UnavailableError) as caught:
            await reply
        assert (caught.value.reason, caught.value.retry_after) == ("SESSION_MOVED", 0.0)
        told = (await step(a, "lo", 3)).prediction
        np.testing.assert_allclose(numbers(told), numbers(await they.whole("hello")), rtol=1e-4, atol=1e-5)


async def test_a_durable_session_under_the_id_of_an_ephemeral_one_that_ended(root: Path) -> None:
    async with replicas(root, 1) as they:
        (a,) = they
        await they.open(durable=False)
        await a.close_session("s")
        with pytest.raises(SessionEndedError):
            await a.get_session("s")
        await they.open()
        assert (await a.get_session("s")).durable
        await a.close_session("s")
        with pytest.raises(SessionEndedError):
            await step(a, "a")


async def test_idle_ephemeral_sessions_make_room_for_a_durable_step(root: Path) -> None:
    async with replicas(root, 1, arena_mb=1, evict_idle=60) as they:
        (a,) = they
        for index in range((1 << 20) // 500 - 200):
            await they.open(f"e{index}", durable=False)
        more = (they.open(f"more{index}", durable=False) for index in range(1000))
        assert OverloadedError in {type(each) for each in await asyncio.gather(*more, return_exceptions=True)}
        they.clock.now += 100
        await they.open()
        assert (await step(a, "hel", 0)).position == 3


async def test_a_model_that_goes_while_a_session_is_opened_on_it(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, MODEL)
    async with replicas(tmp_path, 1) as they:
        (a,) = they

        async def remove() -> None:
            shutil.rmtree(tmp_path / MODEL)
            await a.reload()

        they.store.meanwhile["write"] = remove
        await they.open()
        with pytest.raises(FailedPreconditionError) as caught:
            await step(a, "a", 0)
        assert caught.value.reason == "MODEL_GONE"


async def test_a_session_that_its_store_lost_is_unknown_and_not_closed(root: Path) -> None:
    async with replicas(root, 1) as they:
        (a,) = they
        await they.open()
        await step(a, "ab", 0)
        (entry,) = await they.store.read([key_of("s")])
        assert entry is not None
        assert await they.store.delete(key_of("s"), entry.revision)
        for _ in range(2):
            with pytest.raises(NotFoundError) as caught:
                await step(a, "c", 2)
            assert caught.value.reason == "UNKNOWN_SESSION"


async def test_models_are_unloaded_once_by_whoever_comes_first(tmp_path: Path) -> None:
    clock = ManualClock()
    for version in ("1", "2", "3"):
        write_tiny_bundle(tmp_path, MODEL, version)
    async with serving(tmp_path, clock) as service:
        for version in ("1", "2"):
            await service.open_session(SessionRequest(MODEL, version, ttl_seconds=10))
            shutil.rmtree(tmp_path / MODEL / version)
        await service.reload()
        clock.now += 11
        await asyncio.gather(service.expire(), service.expire())
        assert [model.version for model in service.statistics().models] == ["3"]


async def test_a_page_is_full_also_where_some_sessions_are_overdue(root: Path) -> None:
    async with replicas(root, 1) as they:
        (a,) = they
        for index in range(12):
            await they.open(f"n{index:02}", idle_seconds=10 if index in {1, 2, 3} else 100)
        they.clock.now += 11
        found, token = [], ""
        while True:
            page = await a.list_sessions(5, token)
            found += [info.id for info in page.sessions]
            token = page.next_page_token
            if not token:
                break
        assert found == [f"n{index:02}" for index in range(12) if index not in {1, 2, 3}]


async def test_a_generation_draws_by_the_seed_of_the_session_that_is(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open(seed=1)
        await b.close_session("s")
        for name in ("s", "t"):
            await b.open_session(SessionRequest(MODEL, durable=True, id=name, seed=2))
        sampling = Sampling(max_tokens=16, temperature=1.5)
        expected, _ = await collect(b.generate_on_session("t", Input(text="ab"), sampling, position=0))
        assert (await collect(a.generate_on_session("s", Input(text="ab"), sampling, position=0)))[0] == expected


async def test_a_rewind_whose_reply_was_lost_takes_back_no_step_that_followed_it(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        await a.checkpoint_session("s", "start")
        await step(a, "zzz", 0)

        async def go_on() -> None:
            they.store.lost_replies = 0
            await step(b, "hel", 0)
            they.store.lost_replies = 1

        they.store.meanwhile["write"] = go_on
        with pytest.raises(UnavailableError):
            await a.rewind_session("s", "start")
        assert (await a.get_session("s")).position == 3


async def test_a_cancelled_step_whose_write_is_under_way(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        begun, go = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            await go.wait()

        they.store.meanwhile["write"] = wait
        first = a.step("s", Input(text="hel"), position=0)
        await begun.wait()
        first.cancel()
        second = a.step("s", Input(text="lo"))
        await b.checkpoint_session("s", "there")
        go.set()
        assert (await second).position == 5
        np.testing.assert_allclose(
            numbers((await second).prediction), numbers(await they.whole("hello")), rtol=1e-4, atol=1e-5
        )
