"""Durable sessions over several replicas: exactly once, wherever a step arrives; branching; expiry; pressure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bundles import write_tiny_bundle
from tests.service.serving import change_bundle, collect, numbers
from tests.service.sessions.replicas import MODEL, replicas, step
from tidegate.api import Input, RestoreRequest, Sampling, SessionInfo, SessionRequest
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    PositionConflictError,
    SessionEndedError,
    TidegateError,
    UnavailableError,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2 has other weights and the same states, version 3 other states."""
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(root, MODEL)
    write_tiny_bundle(root, MODEL, version="2", seed=5)
    write_tiny_bundle(root, MODEL, version="3", hidden=8)
    return root


def assert_equal(one: Any, other: Any) -> None:
    np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-4, atol=1e-5)


async def test_any_replica_serves_any_step(root: Path) -> None:
    async with replicas(root, 3) as they:
        await they.open(version="1")
        position = 0
        for index, text in enumerate(["he", "l", "lo w", "orld"] * 3):
            result = await step(they.services[index % 3], text, position)
            position += len(text)
            assert result.position == position
        assert_equal(result.prediction, await they.whole("hello world" * 3))


async def test_a_repeat_is_answered_from_the_record_wherever_it_arrives(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        first = await step(a, "hello", 0, top=3, every_step=True)
        for service in (b, a, b):
            assert await step(service, "hello", 0, top=3, every_step=True) == first
        with pytest.raises(PositionConflictError) as caught:
            await step(b, "hello", 0, top=2, every_step=True)
        assert caught.value.position == 5
        assert (await a.get_session("s")).position == 5


async def test_a_replica_that_fell_behind_never_answers_from_memory(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        await step(a, "ab", 0)
        await a.checkpoint_session("s", "here")
        gone = await step(a, "cd", 2)
        await b.rewind_session("s", "here")
        # The reply to "cd" is what a remembers; the session has forgotten it: applied again, not repeated.
        again = await step(a, "cd", 2)
        assert (again, (await b.get_session("s")).position) == (gone, 4)
        await b.rewind_session("s", "here")
        await step(b, "xy", 2)
        with pytest.raises(PositionConflictError):
            await step(a, "cd", 2)


@pytest.mark.parametrize("how", ["rewind", "close and open", "restore"])
async def test_a_stale_state_cannot_pass(root: Path, how: str) -> None:
    """A replica holds the session at a position that comes up again, with another history behind it."""
    async with replicas(root) as they:
        a, b = they
        await they.open(version="1")
        await a.checkpoint_session("s", "start")
        snapshot = await a.snapshot_session("s")
        await step(a, "zzzz", 0)
        if how == "rewind":
            await b.rewind_session("s", "start")
        else:
            await b.close_session("s")
            if how == "restore":
                await b.restore_session(snapshot, RestoreRequest(id="s", durable=True))
            else:
                await b.open_session(SessionRequest(MODEL, "1", durable=True, id="s"))
        await step(b, "hell", 0)
        # a's copy is at position 4 too, but of "zzzz".
        result = await step(a, "o", 4)
        assert_equal(result.prediction, await they.whole("hello"))


async def test_two_replicas_driven_at_once_apply_each_chunk_once(root: Path) -> None:
    async with replicas(root) as they:
        await they.open(version="1")
        results = await asyncio.gather(*(step(service, "a") for service in [*they] * 8))
        assert sorted(result.position for result in results) == list(range(1, 17))
        last = max(results, key=lambda result: result.position)
        assert_equal(last.prediction, await they.whole("a" * 16))


async def test_an_unconfirmed_write_is_looked_up(root: Path) -> None:
    async with replicas(root) as they:
        a, _ = they
        await they.open()
        they.store.lost_replies = 1
        assert (await step(a, "ab", 0)).position == 2
        assert (await step(a, "c", 2)).position == 3


async def test_a_store_that_is_away_is_told_and_comes_back(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        done = await step(a, "ab", 0)
        they.store.is_away = True
        for _ in range(2):
            with pytest.raises(UnavailableError) as caught:
                await step(a, "cd", 2)
            assert (caught.value.reason, caught.value.retry_after) == ("STORE_AWAY", 1.0)
        assert not a.is_ready
        # What is ephemeral goes on.
        alone = await a.open_session(SessionRequest(MODEL))
        assert (await step(a, "x", 0, alone.id)).position == 1
        they.store.is_away = False
        await a.readiness_changed()
        await a.readiness_changed()
        assert a.is_ready
        assert await step(a, "ab", 0) == done
        assert (await step(b, "cd", 2)).position == 4


async def test_an_ephemeral_session_is_not_opened_under_an_id_that_cannot_be_looked_up(root: Path) -> None:
    async with replicas(root) as they:
        _, b = they
        await they.open()
        alone = await b.open_session(SessionRequest(MODEL))
        snapshot = await b.snapshot_session(alone.id)
        they.store.is_away = True
        for opening in (
            b.open_session(SessionRequest(MODEL, id="s")),
            b.open_session(SessionRequest(MODEL, id="other")),
            b.restore_session(snapshot, RestoreRequest(id="s")),
            b.fork_session(alone.id, ids=["s"]),
        ):
            with pytest.raises(UnavailableError) as caught:
                await opening
            assert (caught.value.reason, caught.value.retry_after) == ("STORE_AWAY", 1.0)
        assert len(await b.fork_session(alone.id, count=2)) == 2
        they.store.is_away = False
        await b.readiness_changed()
        await b.readiness_changed()
        assert (await step(b, "ab", 0)).position == 2
        assert (await b.get_session("s")).durable


async def test_an_ephemeral_session_ends_where_another_replica_opened_a_durable_one_under_its_id(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        for number in range(1500):
            await b.open_session(SessionRequest(MODEL, id=f"alone-{number}"))
        await they.open("alone-7")
        await they.open("alone-1499")
        await step(a, "abc", 0, "alone-1499")
        for _ in range(2):
            await b.expire()
        assert (await b.get_session("alone-1499")).position == 3
        assert (await step(b, "d", 3, "alone-1499")).position == 4
        assert (await b.get_session("alone-7")).durable
        assert not (await b.get_session("alone-8")).durable
        assert b.statistics().ended == {"SESSION_REPLACED": 2}


async def test_a_store_that_is_read_and_cannot_be_written_is_away(root: Path) -> None:
    async with replicas(root) as they:
        a, _ = they
        await they.open()
        they.store.is_read_only = True
        with pytest.raises(UnavailableError):
            await step(a, "ab", 0)
        await a.readiness_changed()
        store = a.statistics().store
        assert store is not None
        assert (a.is_ready, a.is_store_away, store.is_available) == (False, True, False)
        they.store.is_read_only = False
        await a.readiness_changed()
        assert (await step(a, "ab", 0)).position == 2


async def test_many_sessions_are_looked_up_at_once_and_one_fails_no_other(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        for name in ("s", "closed", "idle", "damaged"):
            await they.open(name, idle_seconds=5 if name == "idle" else None)
        await step(a, "ab", 0)
        await a.close_session("closed")
        they.store.damage("damaged")
        they.clock.now += 6
        alone = await b.open_session(SessionRequest(MODEL, id="alone"))
        names = ["s", "closed", "none", alone.id, "idle", "damaged", "x" * 1000, "e~elsewhere~1", "s"]
        found = await b.get_sessions(names)
        assert [each.position for each in (found[0], found[3], found[8]) if isinstance(each, SessionInfo)] == [2, 0, 2]
        assert {
            name: each.reason for name, each in zip(names, found, strict=True) if isinstance(each, TidegateError)
        } == {
            "closed": "SESSION_CLOSED",
            "none": "UNKNOWN_SESSION",
            "idle": "SESSION_IDLE",
            "damaged": "STORE_CORRUPT",
            "x" * 1000: "UNKNOWN_SESSION",
            "e~elsewhere~1": "NOT_ON_THIS_REPLICA",
        }
        they.store.is_away = True
        found = await b.get_sessions(["s", alone.id])
        assert isinstance(found[0], UnavailableError)
        assert isinstance(found[1], SessionInfo)


async def test_a_generation_goes_on_at_another_replica(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        sampling = Sampling(max_tokens=12, temperature=0.8)
        events = a.generate_on_session("s", Input(text="ab"), sampling, position=0)
        begun = [await anext(events) for _ in range(4)]
        await events.aclose()
        tokens, done = await collect(b.generate_on_session("s", Input(text="ab"), sampling, position=0))
        assert tokens[:4] == begun
        assert (done.position, len(done.tokens)) == (14, 12)
        assert await collect(a.generate_on_session("s", Input(text="ab"), sampling, position=0)) == (tokens, done)
        # And from the last step, without a prompt.
        more, _ = await collect(b.generate_on_session("s", None, Sampling(max_tokens=3), position=14))
        assert [token.position for token in more] == [15, 16, 17]


async def test_opening_twice_returns_what_exists_and_another_request_is_refused(root: Path) -> None:
    async with replicas(root) as they:
        _, b = they
        first = await they.open(version="1", seed=4)
        await step(b, "ab")
        request = SessionRequest(MODEL, "1", durable=True, id="s", seed=4)
        again = await b.open_session(request)
        assert (again.created_at, again.position) == (first.created_at, 2)
        for other in (SessionRequest(MODEL, "2", durable=True, id="s"), SessionRequest(MODEL, "1", id="s")):
            with pytest.raises(AlreadyExistsError):
                await b.open_session(other)


async def test_forks_go_their_own_ways(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open(version="1")
        await step(a, "hel", 0)
        children = await b.fork_session("s", ids=["x", "y"])
        assert [(child.id, child.position, child.durable, child.checkpoints) for child in children] == [
            ("x", 3, True, ()),
            ("y", 3, True, ()),
        ]
        assert [child.created_at for child in await a.fork_session("s", ids=["x", "y"])] == [
            child.created_at for child in children
        ]
        assert_equal((await step(a, "lo", 3, "x")).prediction, await they.whole("hello"))
        assert_equal((await step(b, "p!", 3, "y")).prediction, await they.whole("help!"))
        assert_equal((await step(b, "met", 3)).prediction, await they.whole("helmet"))
        # The last reply is not inherited.
        with pytest.raises(PositionConflictError):
            await step(a, "hel", 0, "x")
        with pytest.raises(AlreadyExistsError):
            await a.fork_session("x", ids=["y"])
        many = await a.fork_session("s", count=5)
        assert len({child.id for child in many}) == 5
        first, second = [
            await collect(a.generate_on_session(child.id, None, Sampling(max_tokens=20))) for child in many[:2]
        ]
        assert first[1].tokens != second[1].tokens


@pytest.mark.parametrize("durable", [True, False])
async def test_checkpoints_are_kept_up_to_eight(root: Path, durable: bool) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open(version="1", durable=durable)
        other = b if durable else a
        for index in range(10):
            await step(a, "a", index)
            assert (await other.checkpoint_session("s", f"c{index}")).position == index + 1
        assert (await a.get_session("s")).checkpoints == tuple(f"c{index}" for index in range(2, 10))
        with pytest.raises(NotFoundError) as caught:
            await other.rewind_session("s", "c1")
        assert caught.value.reason == "UNKNOWN_CHECKPOINT"
        for name, position in (("c2", 3), ("c9", 10), ("c2", 3)):
            assert (await other.rewind_session("s", name)).position == position
        assert_equal((await step(a, "b", 3)).prediction, await they.whole("aaab"))
        made = await a.checkpoint_session("s")
        assert made.checkpoint.startswith("4-")
        assert (await a.fork_session("s", ids=["child"]))[0].checkpoints == ()


async def test_an_ephemeral_session_branches_in_place(root: Path) -> None:
    async with replicas(root, 1) as they:
        (a,) = they
        await they.open(version="1", durable=False)
        await step(a, "hel", 0)
        await a.checkpoint_session("s", "hel")
        (child,) = await a.fork_session("s")
        assert child.id.startswith("e~")
        running = [a.step("s", Input(text="xyz")) for _ in range(3)]
        await a.rewind_session("s", "hel")
        # The rewind waited for its turn.
        assert [task.done() for task in running] == [True] * 3
        assert_equal((await step(a, "lo", 3)).prediction, await they.whole("hello"))
        assert_equal((await step(a, "p", 3, child.id)).prediction, await they.whole("help"))


@pytest.mark.parametrize("durable", [True, False])
async def test_an_upgrade_keeps_the_state_and_runs_the_new_weights(root: Path, durable: bool) -> None:
    async with replicas(root, 1) as they:
        (a,) = they
        await they.open(version="1", durable=durable)
        await step(a, "hel", 0)
        assert (await a.upgrade_session("s", "2")).version == "2"
        with pytest.raises(FailedPreconditionError) as caught:
            await a.upgrade_session("s", "3")
        assert caught.value.reason == "LAYOUT_DIFFERS"
        told = (await step(a, "lo", 3)).prediction
        old, new = await they.whole("hello", "1"), await they.whole("hello", "2")
        assert not np.allclose(numbers(told), numbers(old))
        assert not np.allclose(numbers(told), numbers(new))


async def test_a_copy_elsewhere_finds_out_about_an_upgrade_once(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open(version="1")
        await step(a, "hel", 0)
        await b.upgrade_session("s", "2")
        with pytest.raises(UnavailableError) as caught:
            await step(a, "lo", 3)
        assert (caught.value.reason, caught.value.retry_after) == ("SESSION_MOVED", 0.0)
        assert (await step(a, "lo", 3)).position == 5


@pytest.mark.parametrize("durable", [True, False])
async def test_a_snapshot_is_restored_on_another_server(root: Path, durable: bool) -> None:
    async with replicas(root, 1) as they, replicas(root, 1) as others:
        (a,), (b,) = they, others
        await they.open(version="1")
        await step(a, "hel", 0)
        snapshot = await a.snapshot_session("s")
        restored = await b.restore_session(snapshot, RestoreRequest(id="t", durable=durable))
        assert (restored.id, restored.position, restored.durable) == ("t", 3, durable)
        again = await b.restore_session(snapshot, RestoreRequest(id="t", durable=durable))
        assert again.created_at == restored.created_at
        told, other = await step(b, "lo", 3, "t"), await step(a, "lo", 3)
        assert told.prediction == other.prediction
        with pytest.raises(AlreadyExistsError):
            await b.restore_session(await a.snapshot_session("s"), RestoreRequest(id="t", durable=durable))


@given(where=st.integers(0, 10_000), flip=st.integers(1, 255), cut=st.booleans())
async def test_an_altered_snapshot_is_refused(root: Path, where: int, flip: int, cut: bool) -> None:
    async with replicas(root, 1) as they:
        (a,) = they
        await they.open(version="1")
        await step(a, "hel", 0)
        snapshot = bytearray(await a.snapshot_session("s"))
        where %= len(snapshot)
        snapshot[where] ^= flip
        altered = bytes(snapshot[:where] if cut else snapshot)
        with pytest.raises((InvalidInputError, FailedPreconditionError)) as caught:
            await a.restore_session(altered, RestoreRequest(id="t"))
        assert caught.value.reason in {"BAD_SNAPSHOT", "NEWER_FORMAT"}


async def test_a_session_whose_model_is_gone_is_kept(root: Path, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    write_tiny_bundle(bundles, MODEL)
    async with replicas(bundles, 2) as they:
        a, b = they
        await they.open()
        await step(a, "hel", 0)
        change_bundle(bundles / MODEL / "1", "2")
        for path in sorted((bundles / MODEL / "1").iterdir()):
            path.unlink()
        (bundles / MODEL / "1").rmdir()
        await b.reload()
        with pytest.raises(FailedPreconditionError) as caught:
            await step(b, "lo", 3)
        assert caught.value.reason == "MODEL_GONE"
        # a has it in memory for as long as sessions run on it; an upgrade brings it to both.
        await a.reload()
        assert (await step(a, "l", 3)).position == 4
        assert (await b.upgrade_session("s")).version == "2"
        assert (await step(b, "o", 4)).position == 5


async def test_ends_are_told_with_their_reason_and_forgotten_after_an_hour(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open("closed")
        await they.open("old", ttl_seconds=10)
        await they.open("idle", idle_seconds=10)
        await they.open("kept", idle_seconds=10)
        await b.close_session("closed")
        await b.close_session("closed")
        they.clock.now += 6
        await step(b, "a", id_="kept")
        await step(b, "a", id_="old")
        they.clock.now += 6
        # Whether somebody asks first or the reaper comes first.
        with pytest.raises(SessionEndedError):
            await step(a, "a", id_="old")
        await a.expire()
        for name, reason in (("closed", "SESSION_CLOSED"), ("old", "SESSION_EXPIRED"), ("idle", "SESSION_IDLE")):
            for service in they:
                with pytest.raises(SessionEndedError) as caught:
                    await step(service, "a", id_=name)
                assert caught.value.reason == reason
        assert (await step(a, "b", 1, "kept")).position == 2
        assert [info.id for info in (await b.list_sessions()).sessions] == ["kept"]
        they.clock.now += 3601
        await b.expire()
        with pytest.raises(NotFoundError):
            await step(a, "a", id_="closed")


async def test_closing_while_a_step_runs_elsewhere(root: Path) -> None:
    async with replicas(root) as they:
        a, b = they
        await they.open()
        await step(a, "ab")
        await b.close_session("s")
        with pytest.raises(SessionEndedError) as caught:
            await step(a, "cd", 2)
        assert caught.value.reason == "SESSION_CLOSED"
        with pytest.raises(NotFoundError):
            await a.close_session("never")


async def test_a_full_arena_lets_durable_sessions_leave_and_come_back(root: Path) -> None:
    async with replicas(root, 1, arena_mb=1, evict_idle=1e9) as they:
        (a,) = they
        slots = (1 << 20) // 500
        names = [f"s{index}" for index in range(slots + slots // 4)]
        for name in names:
            await they.open(name, version="1")
        assert a.statistics().num_evicted > 0
        for name in (names[0], names[-1], names[len(names) // 2]):
            await step(a, "hel", 0, name)
        for name in names[1:200]:
            await step(a, "x", 0, name)
        assert_equal((await step(a, "lo", 3, names[0])).prediction, await they.whole("hello"))


async def test_lists_hold_ephemeral_and_durable_sessions_by_id(root: Path) -> None:
    async with replicas(root, 1) as they:
        (a,) = they
        for index in range(12):
            await they.open(f"n{index:02}", durable=index % 3 != 0)
        found, token = [], ""
        while True:
            page = await a.list_sessions(5, token)
            found += [info.id for info in page.sessions]
            token = page.next_page_token
            if not token:
                break
        assert found == [f"n{index:02}" for index in range(12)]


async def test_without_a_store_durable_is_refused(root: Path) -> None:
    from tests.service.serving import serving

    async with serving(root) as service:
        with pytest.raises(FailedPreconditionError) as caught:
            await service.open_session(SessionRequest(MODEL, durable=True))
        assert caught.value.reason == "NO_DURABLE_STORE"
