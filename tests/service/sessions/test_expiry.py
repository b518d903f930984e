"""Expiry where clocks disagree: what one ends in error another revives, and nothing is lost meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from tests.redis import redis_server
from tests.service.serving import numbers, started
from tests.service.sessions.replicas import MODEL, Replicas, replicas, step
from tidegate.api import Input, Sampling, SessionRequest
from tidegate.clock import Clock
from tidegate.config import load_settings
from tidegate.errors import AlreadyExistsError, NotFoundError, SessionEndedError
from tidegate.service import Service
from tidegate.sessions.endings import REMEMBERED_SECONDS
from tidegate.sessions.expiry import StoreClock
from tidegate.sessions.ids import key_of
from tidegate.sessions.stores.redis import RedisStore
from tidegate.sessions.stores.store import DUE_CALLS

DAY = 86_400.0
AHEAD = 25 * 3600.0
"""More than a session may be idle for."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(root, MODEL)
    return root


async def kept(they: Replicas, id_: str = "s") -> bool:
    """Whether anything of the session is stored."""
    (entry,) = await they.store.read([key_of(id_)])
    return entry is not None


async def end_of(service: Service, id_: str = "s") -> str:
    """Why a session is over, by what its next step is told."""
    with pytest.raises(SessionEndedError) as caught:
        await step(service, "x", None, id_)
    return caught.value.reason


@pytest.mark.parametrize("lifetime", ["idle_seconds", "ttl_seconds"])
async def test_a_session_that_a_clock_ahead_ended_goes_on_where_the_clock_is_right(root: Path, lifetime: str) -> None:
    async with replicas(root, skews=[0.0, AHEAD]) as they:
        a, b = they
        await they.open("s", version="1", **{lifetime: DAY})
        told = await step(a, "hel", 0)
        await a.checkpoint_session("s", "here")
        before = await a.get_session("s")
        await b.expire()
        assert [info.id for info in (await a.list_sessions()).sessions] == []
        # Whatever looks first: nothing is to be seen of it.
        assert await a.get_session("s") == before
        assert await step(a, "hel", 0) == told
        last = await step(a, "lo", 3)
        assert [info.id for info in (await a.list_sessions()).sessions] == ["s"]
        assert numbers(last.prediction) == pytest.approx(numbers(await they.whole("hello")), rel=1e-4, abs=1e-5)
        await b.expire()
        assert (await a.rewind_session("s", "here")).position == 3


async def test_a_replica_that_meets_the_session_anew_revives_it_too(root: Path) -> None:
    async with replicas(root, 3, skews=[0.0, AHEAD, 1.0]) as they:
        a, b, c = they
        await they.open(idle_seconds=DAY)
        await step(a, "hel", 0)
        await b.expire()
        assert (await step(c, "lo", 3)).position == 5
        await b.expire()
        with pytest.raises(AlreadyExistsError):
            await c.open_session(SessionRequest(MODEL, durable=True, id="s", seed=7))
        (child,) = await c.fork_session("s", ids=["child"])
        assert child.position == 5


async def test_a_step_always_gets_through_and_the_two_do_not_take_turns(root: Path) -> None:
    async with replicas(root, skews=[0.0, AHEAD]) as they:
        a, b = they
        await they.open(idle_seconds=DAY)
        for position in range(20):
            sweep = asyncio.create_task(b.expire())
            assert (await step(a, "a", position)).position == position + 1
            await sweep
            they.clock.now += 1
        # 20 steps, an opening, and the one time that b ended it; then it left it alone for an hour.
        assert they.store.counts["written"] <= 20 + 1 + 1 + 1
        they.clock.now += REMEMBERED_SECONDS
        await b.expire()
        assert (await step(a, "a", 20)).position == 21


async def test_a_generation_that_a_clock_ahead_ends_goes_on(root: Path) -> None:
    async with replicas(root, skews=[0.0, AHEAD]) as they:
        a, b = they
        await they.open(idle_seconds=DAY)
        sampling = Sampling(max_tokens=8, temperature=0)
        events = a.generate_on_session("s", Input(text="ab"), sampling, position=0)
        begun = [await anext(events) for _ in range(3)]
        await events.aclose()
        await b.expire()
        again = [event async for event in a.generate_on_session("s", Input(text="ab"), sampling, position=0)]
        assert again[:3] == begun
        assert (await a.get_session("s")).position == 10


async def test_what_expired_is_forgotten_after_an_hour_of_the_replica_that_ended_it(root: Path) -> None:
    """Whatever its clock says by then."""
    async with replicas(root, skews=[0.0, AHEAD]) as they:
        a, b = they
        await they.open(idle_seconds=DAY)
        await step(a, "hel", 0)
        await b.expire()
        they.skews[1] += 10 * DAY
        for _ in range(3):
            they.clock.now += 1000
            await b.expire()
        assert (await step(a, "lo", 3)).position == 5


async def test_what_a_clock_ahead_ended_is_forgotten_by_others_only_after_an_hour_of_theirs(root: Path) -> None:
    async with replicas(root, skews=[0.0, AHEAD]) as they:
        a, b = they
        await they.open(idle_seconds=10)
        they.clock.now += 20
        await b.expire()
        assert await end_of(a) == "SESSION_IDLE"
        # The one that ended it is gone; its entry comes up when the time has come that its clock told.
        they.clock.now += AHEAD + REMEMBERED_SECONDS
        await a.expire()
        assert await kept(they) is False


async def test_an_ending_in_the_future_is_watched_for_an_hour(root: Path) -> None:
    async with replicas(root, skews=[0.0, AHEAD]) as they:
        a, b = they
        await they.open(idle_seconds=10)
        they.clock.now += 20
        await b.expire()
        await they.store.postpone(key_of("s"), 0.0)
        for _ in range(2):
            await a.expire()
            assert await kept(they)
            they.clock.now += REMEMBERED_SECONDS / 2
        they.clock.now += 1
        await a.expire()
        assert not await kept(they)


async def test_what_really_expired_stays_so_and_is_forgotten_after_an_hour(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open(idle_seconds=10)
        await step(a, "hel", 0)
        they.clock.now += 11
        await b.expire()
        for service in they:
            assert await end_of(service) == "SESSION_IDLE"
        they.clock.now += REMEMBERED_SECONDS - 1
        await a.expire()
        assert await kept(they)
        they.clock.now += 2
        await a.expire()
        await b.expire()
        assert not await kept(they)
        with pytest.raises(NotFoundError):
            await step(a, "x")


async def test_a_replica_that_starts_anew_forgets_what_ended_an_hour_ago(root: Path) -> None:
    async with replicas(root) as they:
        a, _ = they
        await they.open(idle_seconds=10)
        they.clock.now += 11
        await a.expire()
        they.clock.now += REMEMBERED_SECONDS + 1
        other = Service(a.settings, a.clock, they.store)
        await other.start()
        await other.expire()
        assert not await kept(they)
        await other.stop()


async def test_what_was_closed_is_over_for_every_clock_and_keeps_no_state(root: Path) -> None:
    async with replicas(root, skews=[0.0, -AHEAD]) as they:
        a, b = they
        await they.open(idle_seconds=DAY)
        await step(a, "hel", 0)
        await a.checkpoint_session("s", "here")
        await a.close_session("s")
        for service in they:
            assert await end_of(service) == "SESSION_CLOSED"
        (entry,) = await they.store.read([key_of("s")])
        assert entry is not None
        assert entry.body == b""
        assert await they.store.read_attachment(key_of("s"), "here") is None
        await b.open_session(SessionRequest(MODEL, durable=True, id="s", idle_seconds=2 * DAY))
        assert (await step(a, "x", 0)).position == 1


async def test_a_session_that_is_used_here_is_not_idle_whatever_the_clock_was_set_to(root: Path) -> None:
    async with replicas(root, 1, skews=[0.0]) as they:
        (a,) = they
        for id_ in ("used", "idle"):
            await they.open(id_, idle_seconds=60)
        they.clock.now += 50
        await step(a, "hel", 0, "used")
        they.clock.now += 20
        they.skews[0] = AHEAD
        await a.expire()
        assert (await a.get_session("used")).position == 3
        assert (await step(a, "lo", 3, "used")).position == 5
        assert await end_of(a, "idle") == "SESSION_IDLE"
        they.clock.now += 61
        await a.expire()
        assert await end_of(a, "used") == "SESSION_IDLE"


async def test_a_clock_that_is_set_right_again_gives_back_what_it_took(root: Path) -> None:
    async with replicas(root, 1, skews=[AHEAD]) as they:
        (a,) = they
        they.skews[0] = 0.0
        await a.expire()
        await they.open(idle_seconds=DAY)
        await step(a, "hel", 0)
        they.skews[0] = AHEAD
        they.clock.now += 1
        # Another process of the same host, that has not used it.
        other = Service(a.settings, a.clock, they.store.beside(a.clock))
        await other.start()
        await other.expire()
        assert await end_of(other) == "SESSION_IDLE"
        they.skews[0] = 0.0
        await other.expire()
        assert (await step(other, "lo", 3)).position == 5
        await other.stop()


async def test_lists_ends_and_looks_read_no_bodies(root: Path) -> None:
    async with replicas(root, 1) as they:
        (a,) = they
        for number in range(30):
            await they.open(f"s{number}", idle_seconds=10)
            await step(a, "hel", 0, f"s{number}", every_step=True)
        they.store.counts.clear()
        assert len((await a.list_sessions(100)).sessions) == 30
        assert (await a.get_session("s1")).position == 3
        await a.close_session("s2")
        they.clock.now += 11
        await a.expire()
        assert await end_of(a, "s2") == "SESSION_CLOSED"
        they.clock.now += REMEMBERED_SECONDS + 1
        await a.expire()
        assert not await kept(they, "s3")
        # But for the two looks of this test itself.
        assert they.store.counts["read"] == 2


async def test_redis_tells_the_time_that_sessions_expire_by(root: Path) -> None:
    settings = load_settings({"bundles": root, "store_timeout": 30})
    with redis_server(appendfsync="no") as server:
        clocks = (Clock(), Clock(wall=lambda: Clock().wall() + AHEAD))
        a, b = (Service(settings, clock, RedisStore(server.url)) for clock in clocks)
        async with started(a), started(b):
            await a.open_session(SessionRequest(MODEL, durable=True, id="s", idle_seconds=DAY))
            for _ in range(DUE_CALLS + 1):
                await b.expire()
            assert (await step(b, "hel", 0)).position == 3
            for _ in range(DUE_CALLS + 1):
                await b.expire()
            assert [info.id for info in (await b.list_sessions()).sessions] == ["s"]
            assert (await step(a, "lo", 3)).position == 5


def test_the_stores_clock_goes_on_by_the_monotonic_one() -> None:
    seconds = [5.0]
    clock = StoreClock(lambda: seconds[0], lambda: 1000.0)
    assert clock.now() == 1000.0
    clock.set(3000.0)
    seconds[0] += 2
    assert clock.now() == 3002.0
