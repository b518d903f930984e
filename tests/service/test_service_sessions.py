"""Sessions from opening to their end, with a clock that is turned by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import VOCABULARY, write_tiny_bundle
from tests.clock import EPOCH, START, ManualClock
from tests.service.serving import collect, serving
from tidegate.api import Input, Sampling, SessionInfo, SessionRequest
from tidegate.engine.session import Session
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PositionConflictError,
    SessionEndedError,
    TidegateError,
)
from tidegate.limits import CHECKPOINT_BYTES
from tidegate.service import Service
from tidegate.slices import Slices

TINY = SessionRequest("tiny")
A = Input(text="a")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(root)
    write_tiny_bundle(root, "other", "3", cell="gru")
    return root


async def ending(service: Service, session: str) -> str:
    """Return the reason that a step on an ended session is told; every other call tells the same."""
    with pytest.raises(SessionEndedError) as caught:
        service.step(session, A)
    with pytest.raises(SessionEndedError) as again:
        await service.get_session(session)
    assert caught.value.reason == again.value.reason
    return caught.value.reason


async def test_a_session_tells_what_it_is(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock, idle_seconds=50) as service:
        opened = await service.open_session(SessionRequest("other", id="mine", ttl_seconds=30))
        expected = SessionInfo("mine", "other", "3", 0, False, EPOCH + START, EPOCH + START + 30, 2 * 16 * 4)
        assert opened == expected
        await service.step("mine", Input(text="abc"))
        assert await service.get_session("mine") == expected._replace(position=3)
        assert (await service.open_session(TINY)).expires_at == EPOCH + START + 50


async def test_made_ids_carry_the_replica_and_are_all_different(root: Path) -> None:
    async with serving(root, replica="r1") as service:
        ids = {(await service.open_session(TINY)).id for _ in range(50)}
        assert len(ids) == 50
        assert all(name.startswith("e~r1~") for name in ids)
        for call in (service.get_session, service.close_session):
            with pytest.raises(FailedPreconditionError, match="lives on replica r2") as caught:
                await call("e~r2~abc")
            assert caught.value.reason == "NOT_ON_THIS_REPLICA"
        for unknown in ("e~r1~abc", "nobody", "e~", "e~r1"):
            with pytest.raises(NotFoundError) as missing:
                await service.get_session(unknown)
            assert missing.value.reason == "UNKNOWN_SESSION"


async def test_opening_again_with_an_equal_request_returns_what_is_there(root: Path) -> None:
    async with serving(root) as service:
        request = SessionRequest("tiny", id="mine", seed=4)
        await service.open_session(request)
        await service.step("mine", A)
        assert (await service.open_session(request)).position == 1
        for other in (SessionRequest("tiny", id="mine"), SessionRequest("other", id="mine", seed=4)):
            with pytest.raises(AlreadyExistsError, match="another request"):
                await service.open_session(other)
        await service.close_session("mine")
        assert (await service.open_session(request)).position == 0


@pytest.mark.parametrize(
    ("request_", "error", "reason"),
    [
        (SessionRequest("nobody"), NotFoundError, "UNKNOWN_MODEL"),
        (SessionRequest("tiny", version="2"), NotFoundError, "UNKNOWN_VERSION"),
        (SessionRequest("tiny", version="9" * 5000), NotFoundError, "UNKNOWN_VERSION"),
        (SessionRequest("tiny", version="01"), NotFoundError, "UNKNOWN_VERSION"),
        (SessionRequest("tiny", id=""), InvalidInputError, "BAD_SESSION_ID"),
        (SessionRequest("tiny", id="a/b"), InvalidInputError, "BAD_SESSION_ID"),
        (SessionRequest("tiny", id="a\n"), InvalidInputError, "BAD_SESSION_ID"),
        (SessionRequest("tiny", id="a" * 129), InvalidInputError, "BAD_SESSION_ID"),
        (SessionRequest("tiny", id="e~x~y"), InvalidInputError, "BAD_SESSION_ID"),
        (SessionRequest("tiny", ttl_seconds=0), InvalidInputError, "BAD_LIFETIME"),
        (SessionRequest("tiny", idle_seconds=float("nan")), InvalidInputError, "BAD_LIFETIME"),
        (SessionRequest("tiny", ttl_seconds=float("inf")), InvalidInputError, "BAD_LIFETIME"),
        (SessionRequest("tiny", ttl_seconds=1e12), InvalidInputError, "BAD_LIFETIME"),
        (SessionRequest("tiny", idle_seconds=1e300), InvalidInputError, "BAD_LIFETIME"),
        (SessionRequest("tiny", durable=True), FailedPreconditionError, "NO_DURABLE_STORE"),
    ],
)
async def test_what_cannot_be_opened_is_refused_and_leaves_nothing(
    root: Path, request_: SessionRequest, error: type[TidegateError], reason: str
) -> None:
    async with serving(root) as service:
        with pytest.raises(error) as caught:
            await service.open_session(request_)
        assert caught.value.reason == reason
        assert service.statistics().num_sessions == 0


async def test_closing_twice_succeeds_and_closing_nobody_does_not(root: Path) -> None:
    async with serving(root) as service:
        session = (await service.open_session(TINY)).id
        await service.close_session(session)
        await service.close_session(session)
        assert await ending(service, session) == "SESSION_CLOSED"
        with pytest.raises(NotFoundError):
            await service.close_session("nobody")


async def test_closing_while_a_chunk_waits_answers_it(root: Path) -> None:
    async with serving(root) as service:
        session = (await service.open_session(TINY)).id
        replies = [service.step(session, Input(text="abc" * 100)), service.step(session, A)]
        await service.close_session(session)
        results = await asyncio.gather(*replies, return_exceptions=True)
        assert [getattr(error, "reason", None) for error in results] == ["SESSION_CLOSED"] * 2


@pytest.mark.parametrize(
    ("limits", "reason"), [({"ttl_seconds": 10.0}, "SESSION_EXPIRED"), ({"idle_seconds": 10.0}, "SESSION_IDLE")]
)
@pytest.mark.parametrize("is_reaped", [True, False])
async def test_a_session_ends_when_its_time_is_over(
    root: Path, limits: dict[str, Any], reason: str, is_reaped: bool
) -> None:
    clock = ManualClock()
    async with serving(root, clock) as service:
        session = (await service.open_session(SessionRequest("tiny", **limits))).id
        clock.now += 9.9
        await service.expire()
        assert (await service.get_session(session)).position == 0
        clock.now += 0.1
        if is_reaped:
            await service.expire()
        assert await ending(service, session) == reason
        assert service.statistics().ended == {reason: 1}


async def test_every_step_puts_idleness_off_and_nothing_puts_the_time_to_live_off(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock) as service:
        session = (await service.open_session(SessionRequest("tiny", idle_seconds=10, ttl_seconds=25))).id
        for position in (1, 2, 3):
            clock.now += 8
            assert (await service.step(session, A)).position == position
        clock.now += 1
        assert await ending(service, session) == "SESSION_EXPIRED"


async def test_an_overdue_sessions_id_is_free_again(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock) as service:
        request = SessionRequest("tiny", id="mine", ttl_seconds=5)
        await service.open_session(request)
        await service.step("mine", A)
        clock.now += 5
        assert (await service.open_session(request)).position == 0


async def test_the_servers_defaults_apply_where_a_request_says_nothing(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock, ttl_seconds=20, idle_seconds=None) as service:
        mine = await service.open_session(TINY)
        longer = await service.open_session(SessionRequest("tiny", ttl_seconds=100))
        assert (mine.expires_at, longer.expires_at) == (EPOCH + START + 20, EPOCH + START + 100)
        clock.now += 20
        await service.expire()
        assert await ending(service, mine.id) == "SESSION_EXPIRED"
        assert (await service.step(longer.id, A)).position == 1


async def fill(service: Service) -> list[str]:
    """Open sessions of 256 bytes of state and 65 logits until the arena is full."""
    opened = [(await service.open_session(TINY)).id for _ in range((1 << 20) // (256 + 65 * 4))]
    with pytest.raises(OverloadedError) as caught:
        await service.open_session(TINY)
    assert (caught.value.reason, caught.value.retry_after) == ("ARENA_FULL", 30.0)
    return opened


async def test_a_full_arena_refuses_until_somebody_has_been_idle_long_enough(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock, arena_mb=1, evict_idle=60) as service:
        opened = await fill(service)
        (tiny,) = [model for model in service.statistics().models if model.model == "tiny"]
        assert (tiny.arena_slots_used, tiny.arena_bytes) == (len(opened), len(opened) * (256 + 65 * 4))
        clock.now += 59
        await service.step(opened[0], A)
        with pytest.raises(OverloadedError):
            await service.open_session(TINY)
        clock.now += 1
        fresh = await service.open_session(SessionRequest("other"))
        assert await ending(service, opened[1]) == "SESSION_EVICTED"
        assert (await service.step(opened[0], A)).position == 2
        assert (await service.step(fresh.id, A)).position == 1
        assert service.statistics().ended == {"SESSION_EVICTED": 1}


async def test_a_bad_request_evicts_nobody(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock, arena_mb=1, evict_idle=0) as service:
        for _ in range(3000):
            await service.open_session(TINY)
        before = service.statistics()
        with pytest.raises(InvalidInputError):
            await service.open_session(SessionRequest("tiny", ttl_seconds=-1))
        assert service.statistics() == before
        assert before.ended["SESSION_EVICTED"] == 3000 - before.num_sessions > 0


async def test_sessions_are_listed_in_pages(root: Path) -> None:
    async with serving(root) as service:
        for number in range(7):
            await service.open_session(SessionRequest("tiny", id=f"s{number}"))
        first = await service.list_sessions(limit=3)
        second = await service.list_sessions(limit=3, page_token=first.next_page_token)
        third = await service.list_sessions(limit=3, page_token=second.next_page_token)
        names = [session.id for page in (first, second, third) for session in page.sessions]
        assert names == [f"s{number}" for number in range(7)]
        assert (third.next_page_token, (await service.list_sessions()).next_page_token) == ("", "")
        for limit in (-1, 1001):
            with pytest.raises(InvalidInputError) as caught:
                await service.list_sessions(limit=limit)
            assert caught.value.reason == "BAD_PAGE"


async def test_a_page_whose_sessions_end_while_it_is_made_names_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look-ups have turns of the event loop between them; here a turn is enough to end a session."""
    async with serving(root) as service:
        for number in range(4):
            await service.open_session(SessionRequest("tiny", id=f"s{number}"))
        manager = service._sessions  # noqa: SLF001
        pages = manager._residents.page  # noqa: SLF001

        def page_and_end(limit: int, after: str) -> Slices[tuple[list[Session], str]]:
            sessions, token = yield from pages(limit, after)
            ended = {session.id for session in sessions} & {"s0", "s1"}
            return [session for session in sessions if session.id not in ended], token

        monkeypatch.setattr(manager._residents, "page", page_and_end)  # noqa: SLF001
        first = await service.list_sessions(limit=2)
        assert (first.sessions, first.next_page_token) == ([], "s1")
        rest = await service.list_sessions(limit=2, page_token=first.next_page_token)
        assert ([info.id for info in rest.sessions], rest.next_page_token) == (["s2", "s3"], "")


async def test_a_checkpoint_of_a_session_that_makes_its_own_room_takes_nothing_of_the_budget(root: Path) -> None:
    async with serving(root, arena_mb=1, evict_idle=0) as service:
        session = (await service.open_session(TINY)).id
        await service.step(session, A)
        budget = service._registry.budget  # noqa: SLF001
        used, taken = budget.used, budget.total - budget.used - CHECKPOINT_BYTES
        budget.take(taken)
        with pytest.raises(SessionEndedError):
            await service.checkpoint_session(session, "here")
        assert budget.used - taken < used  # the session's slot is free, and nothing is taken


async def test_repeats_and_conflicts_through_the_whole_house(root: Path) -> None:
    async with serving(root) as service:
        session = (await service.open_session(TINY)).id
        first = await service.step(session, Input(text="ab"), position=0)
        assert (
            await service.step(session, Input(tokens=[VOCABULARY.index("a"), VOCABULARY.index("b")]), position=0)
            is first
        )
        with pytest.raises(PositionConflictError) as caught:
            await service.step(session, Input(text="ac"), position=0)
        assert caught.value.details == {"position": "2"}
        sampling = Sampling(max_tokens=6)
        told = await collect(service.generate_on_session(session, A, sampling, position=2))
        assert await collect(service.generate_on_session(session, A, sampling, position=2)) == told
        assert (await service.get_session(session)).position == told[1].position == 9


async def test_a_generation_whose_caller_leaves_stops_and_can_be_taken_up_again(root: Path) -> None:
    async with serving(root) as service:
        sampling = Sampling(max_tokens=20, seed=3)
        expected = await collect(service.generate("tiny", None, Input(text="abc"), sampling))
        session = (await service.open_session(TINY)).id
        events = service.generate_on_session(session, Input(text="abc"), sampling, position=0)
        told = [await anext(events) for _ in range(5)]
        await events.aclose()
        assert told == expected[0][:5]
        position = (await service.get_session(session)).position
        assert 3 + 5 <= position < 3 + 20
        again = service.generate_on_session(session, Input(text="abc"), sampling, position=0)
        assert await collect(again) == expected


async def test_a_session_that_ends_before_its_generation_starts_is_told(root: Path) -> None:
    async with serving(root) as service:
        session = (await service.open_session(TINY)).id
        await service.step(session, A)
        events = service.generate_on_session(session, None, Sampling(max_tokens=3))
        await service.close_session(session)
        with pytest.raises(SessionEndedError):
            await anext(events)


async def most_at_once(service: Service, work: Coroutine[Any, Any, object]) -> int:
    """Return by how many sessions there were more, or fewer, between two turns of others while the work went on."""
    doing = asyncio.create_task(work)
    most, before = 0, service.statistics().num_sessions
    while not doing.done():
        await asyncio.sleep(0)
        now = service.statistics().num_sessions
        most, before = max(most, abs(now - before)), now
    await doing
    return most


async def test_others_have_their_turn_while_a_thousand_are_forked_and_while_they_expire(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock) as service:
        await service.open_session(SessionRequest("tiny", id="s", ttl_seconds=60.0))
        assert await most_at_once(service, service.fork_session("s", count=1000)) < 1000
        assert service.statistics().num_sessions == 1001
        clock.now += 61.0
        assert await most_at_once(service, service.expire()) < 1000
        assert service.statistics().num_sessions == 0
