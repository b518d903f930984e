"""A server goes, another comes: both clients go on, and each step is applied once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.service.client.remembering import Pauses, RememberingService, Site
from tests.service.client.threaded import threaded
from tidegate import errors
from tidegate.api import GenerationDone, Input
from tidegate.client import AsyncClient, AsyncSession, Client, ReplyLostError, Retry

AWAY = errors.UnavailableError("away", reason="STORE_AWAY", retry_after=1.5)


@pytest.fixture
async def service() -> RememberingService:
    service = RememberingService()
    service.add_sessions("a", "b", "c")
    service.sessions["a"] = service.sessions["a"]._replace(durable=True)
    return service


@pytest.fixture
async def site(service: RememberingService) -> AsyncIterator[Site]:
    site = Site(service)
    await site.start()
    yield site
    await site.stop()


@pytest.fixture
async def pauses(site: Site) -> Pauses:
    return Pauses(site)


@pytest.fixture(params=["asyncio", "threads"])
async def client(site: Site, pauses: Pauses, request: pytest.FixtureRequest) -> AsyncIterator[AsyncClient]:
    retry = Retry(attempts=5)
    if request.param == "asyncio":
        async with AsyncClient(site.address, timeout=60, retry=retry, sleep=pauses.wait) as client:
            yield client
    else:
        async with threaded(Client(site.address, timeout=60, retry=retry, sleep=pauses.block)) as client:
            yield client


@pytest.fixture
async def session(client: AsyncClient) -> AsyncSession:
    """The durable one."""
    return await client.session("a")


def texts(service: RememberingService, session: str = "a") -> str:
    """What a session was fed, in one piece."""
    return "".join(each.text or "" for each in service.applied[session])


def forget_position(session: AsyncSession) -> None:
    """As after a generation that was broken off."""
    getattr(session, "inner", session).position = None


# ---- one session's stream


async def test_a_reply_that_went_down_with_its_server_comes_from_the_next(
    session: AsyncSession, service: RememberingService, site: Site, pauses: Pauses
) -> None:
    async with session.stream() as stream:
        await stream.step("a")
        service.is_holding = True
        step = asyncio.create_task(stream.step("bc"))
        while await service.submitted.get() and len(service.steps) < 2:
            pass
        await site.stop()
        service.is_holding = False
        assert (await step).position == 3
        assert (await stream.step("d")).position == 4
    assert texts(service) == "abcd"
    assert [call.position for call in service.steps] == [0, 1, 1, 3]
    assert len(pauses) == 1


async def test_a_step_that_went_down_before_it_was_applied_is_applied_by_the_next(
    session: AsyncSession, service: RememberingService, site: Site
) -> None:
    async with session.stream() as stream:
        service.is_deaf = True
        step = asyncio.create_task(stream.step("ab", every_step=True))
        await service.submitted.get()
        service.is_deaf = False  # before the client can come to the next server
        await site.stop()
        reply = await step
    assert (reply.position, reply.prediction.every_step, texts(service)) == (2, True, "ab")


async def test_steps_sent_ahead_of_a_durable_session_are_held_back_and_none_is_lost(
    session: AsyncSession, service: RememberingService, site: Site
) -> None:
    async with session.stream() as stream:
        service.is_holding = True
        for letter in "abcd":
            await stream.send(letter)
        first = asyncio.create_task(stream.receive())
        await service.submitted.get()
        assert texts(service) == "a"
        await site.stop()
        service.is_holding = False
        assert [(await first).position, *[(await stream.receive()).position for _ in "bcd"]] == [1, 2, 3, 4]
    assert texts(service) == "abcd"


async def test_of_steps_that_overlap_replies_may_be_lost_and_are_told_as_such(
    session: AsyncSession, service: RememberingService, site: Site
) -> None:
    async with session.stream(overlap=4) as stream:
        service.is_holding = True
        for letters in ("a", "bb", "ccc"):
            await stream.send(letters)
        for _ in range(3):
            await service.submitted.get()
        await site.stop()
        service.is_holding = False
        await stream.send("d")
        for position in (1, 3):
            with pytest.raises(ReplyLostError) as caught:
                await stream.receive()
            assert caught.value.position == session.position == position
        assert [(await stream.receive()).position for _ in range(2)] == [6, 7]
        assert (await stream.step("e")).position == 8
    assert texts(service) == "abbcccde"


async def test_a_refused_step_lets_none_behind_it_slip_into_its_place(
    session: AsyncSession, service: RememberingService
) -> None:
    async with session.stream(overlap=3) as stream:
        service.is_holding = True
        await stream.send("a")
        await service.submitted.get()
        service.failures["a"] = [errors.InvalidInputError("no such character")]
        for letter in "?b":
            await stream.send(letter)
        waiting = asyncio.create_task(stream.receive())
        while len(service.steps) < 3:
            await asyncio.to_thread(lambda: None)
        service.is_holding = False
        service.release()
        assert (await waiting).position == 1
        with pytest.raises(errors.InvalidInputError):
            await stream.receive()
        with pytest.raises(errors.PositionConflictError):
            await stream.receive()
        assert (await stream.step("c")).position == 2
    assert texts(service) == "ac"


async def test_a_drained_stream_is_opened_again(
    session: AsyncSession, service: RememberingService, site: Site, pauses: Pauses
) -> None:
    async with session.stream() as stream:
        await stream.step("a")
        await site.drain()
        assert (await stream.step("b")).position == 2
    assert texts(service) == "ab"
    assert len(pauses) == 1


async def test_an_error_that_passes_is_not_told(
    session: AsyncSession, service: RememberingService, pauses: Pauses
) -> None:
    service.failures["a"] = [AWAY, errors.UnavailableError("moved", reason="SESSION_MOVED")]
    async with session.stream() as stream:
        assert (await stream.step("a")).position == 1
    assert texts(service) == "a"
    assert (len(pauses), pauses[0]) == (2, 1.5)


async def test_tries_are_bounded_and_the_same_step_is_safe_afterwards(
    session: AsyncSession, service: RememberingService, pauses: Pauses
) -> None:
    async with session.stream() as stream:
        service.failures["a"] = [AWAY] * 5
        with pytest.raises(errors.UnavailableError, match="away"):
            await stream.step("a")
        assert len(pauses) == 4
        assert (await stream.step("a")).position == 1
    assert texts(service) == "a"


@pytest.mark.parametrize(
    "error", [errors.DeadlineExceededError("late"), errors.OverloadedError("full"), errors.NotFoundError("gone")]
)
async def test_an_answer_is_an_answer(
    session: AsyncSession, service: RememberingService, pauses: Pauses, error: errors.TidegateError
) -> None:
    service.failures["a"] = [error]
    async with session.stream() as stream:
        with pytest.raises(type(error)):
            await stream.step("a")
        assert (await stream.step("a")).position == 1
    assert pauses == []


async def test_a_conflict_is_never_tried_again(
    session: AsyncSession, service: RememberingService, pauses: Pauses
) -> None:
    service.sessions["a"] = service.sessions["a"]._replace(position=7)
    async with session.stream() as stream:
        with pytest.raises(errors.PositionConflictError) as caught:
            await stream.step("a")
        assert caught.value.position == (await session.refresh()).position == 7
        assert (await stream.step("a")).position == 8
    assert pauses == []


async def test_a_session_that_died_with_its_server_is_told_at_once(
    client: AsyncClient, service: RememberingService, site: Site, pauses: Pauses
) -> None:
    session = await client.session("b")
    async with session.stream() as stream:
        await stream.step("a")
        await site.stop()
        del service.sessions["b"]
        with pytest.raises(errors.NotFoundError):
            await stream.step("b")
    assert len(pauses) == 1


async def test_without_a_position_nothing_is_sent_twice(
    session: AsyncSession, service: RememberingService, site: Site, pauses: Pauses
) -> None:
    forget_position(session)
    async with session.stream() as stream:
        service.is_deaf = True
        step = asyncio.create_task(stream.step("a"))
        await service.submitted.get()
        await site.stop()
        with pytest.raises(errors.UnavailableError):
            await step
    assert pauses == []
    assert service.applied == {}


async def test_an_unknown_position_is_told_by_the_first_reply(
    session: AsyncSession, service: RememberingService
) -> None:
    forget_position(session)
    async with session.stream(overlap=3) as stream:
        for letter in "abc":
            await stream.send(letter)
        assert [(await stream.receive()).position for _ in "abc"] == [1, 2, 3]
    assert [call.position for call in service.steps] == [None, 1, 2]


async def test_a_closed_stream_stays_closed(session: AsyncSession) -> None:
    async with session.stream() as stream:
        await stream.step("a")
    with pytest.raises(RuntimeError, match="closed"):
        await stream.step("b")
    with pytest.raises(RuntimeError, match="send first"):
        await stream.receive()


async def test_an_interrupted_step_may_be_made_again(site: Site, service: RememberingService, pauses: Pauses) -> None:
    async with AsyncClient(site.address, sleep=pauses.wait) as client:
        session = await client.session("a")
        async with session.stream() as stream:
            service.is_holding = True
            step = asyncio.create_task(stream.step("a"))
            await service.submitted.get()
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
            service.is_holding = False
            assert (await stream.step("a")).position == 1
            assert (await stream.step("b")).position == 2
    assert texts(service) == "ab"


# ---- many sessions' stream


async def test_columns_that_went_down_with_their_server_are_answered_by_the_next(
    client: AsyncClient, service: RememberingService, site: Site
) -> None:
    async with client.stream() as stream:
        await stream.attach(["a", "b"], first_lane=3)
        await stream.attach(["c"], first_lane=9)
        await stream.step([3, 9], tokens=[1, 2])
        service.is_holding = True
        await stream.send([3, 4], tokens=[5, 6, 7], lengths=[2, 1])
        await stream.send([9], tokens=[8])
        await stream.send([4, 9], tokens=[9, 10])
        waiting = asyncio.create_task(stream.receive())
        while len(service.steps) < 5:
            await service.submitted.get()
        await site.stop()
        service.is_holding = False
        assert (await waiting).positions == [3, 1]
        assert [(await stream.receive()).positions for _ in range(2)] == [[2], [2, 3]]
    assert service.applied == {
        "a": [Input(tokens=[1]), Input(tokens=[5, 6])],
        "b": [Input(tokens=[7]), Input(tokens=[9])],
        "c": [Input(tokens=[2]), Input(tokens=[8]), Input(tokens=[10])],
    }


async def test_a_lane_that_is_away_is_asked_again_and_no_other_is_stepped_twice(
    client: AsyncClient, service: RememberingService, pauses: Pauses
) -> None:
    async with client.stream() as stream:
        await stream.attach(["a", "b"])
        service.failures["b"] = [AWAY]
        result = await stream.step([0, 1], tokens=[1, 2])
    assert (result.positions, result.errors, pauses) == ([1, 1], {}, [1.5])
    assert service.applied == {"a": [Input(tokens=[1])], "b": [Input(tokens=[2])]}


async def test_a_lane_that_stays_away_is_an_error_in_the_end(
    client: AsyncClient, service: RememberingService, pauses: Pauses
) -> None:
    async with client.stream() as stream:
        await stream.attach(["a", "b"])
        service.late_failures["b"] = [AWAY] * 5
        result = await stream.step([0, 1], tokens=[1, 2])
        assert (result.positions, list(result.errors), len(pauses)) == ([1], [1], 4)
        assert (await stream.step([0, 1], tokens=[3, 2])).positions == [2, 1]
    assert service.applied["b"] == [Input(tokens=[2])]


async def test_a_lane_whose_session_is_gone_is_told_and_the_others_go_on(
    client: AsyncClient, service: RememberingService, site: Site
) -> None:
    async with client.stream() as stream:
        await stream.attach(["a", "b"])
        await site.stop()
        del service.sessions["b"]
        result = await stream.step([0, 1], tokens=[1, 2])
    assert result.positions == [1]
    assert {lane: error.reason for lane, error in result.errors.items()} == {1: "UNKNOWN_SESSION"}


async def test_attaching_waits_for_a_server_too(
    client: AsyncClient, service: RememberingService, site: Site, pauses: Pauses
) -> None:
    await client.session("a")
    await site.stop()
    async with client.stream() as stream:
        assert (await stream.attach(["a", "b"])).errors == {}
        service.failures["c"] = [AWAY]
        assert (await stream.attach(["c"], first_lane=2)).errors == {}
        assert (await stream.step([0, 2], tokens=[1, 2])).positions == [1, 1]
    assert len(pauses) == 2


async def test_tries_end_where_no_server_comes(site: Site, service: RememberingService) -> None:
    pauses = Pauses(site)
    pauses.is_server_to_come = False
    retry = Retry(attempts=3, longest=0.01)
    async with AsyncClient(site.address, retry=retry, sleep=pauses.wait) as client:
        session = await client.session("a")
        async with client.stream() as columns, session.stream() as stream:
            await columns.attach(["b"])
            await site.stop()
            for call in (session.step("x"), stream.step("x"), columns.step([0], tokens=[1]), session.close()):
                with pytest.raises(errors.UnavailableError):
                    await call
    assert (len(pauses), service.applied) == (8, {})


# ---- generations


async def test_a_generation_is_told_on_by_the_next_server(
    session: AsyncSession, service: RememberingService, site: Site, pauses: Pauses
) -> None:
    service.hold_after = 3
    told = []
    async for event in session.generate("xy", max_tokens=5, seed=4):
        told.append(event)
        if len(told) == 3:
            await service.submitted.get()  # it waits before the fourth
            service.hold_after = None
            await site.stop()
    assert [event.position for event in told] == [3, 4, 5, 6, 7, 7]
    assert isinstance(told[-1], GenerationDone)
    assert told[-1].text == "abcde"
    assert [each.tokens for each in service.applied["a"]] == [[token] for token in range(5)]
    assert service.generations[0][:3] == service.generations[1][:3]
    assert (session.position, len(pauses)) == (7, 1)


async def test_a_generation_given_up_begins_anew_with_what_was_told(
    session: AsyncSession, service: RememberingService, site: Site
) -> None:
    service.hold_after = 1
    events = session.generate("x", max_tokens=2)
    assert (await anext(events)).position == 2
    await service.submitted.get()
    service.failures["a"] = [AWAY] * 5
    await site.stop()
    with pytest.raises(errors.UnavailableError):
        await anext(events)
    assert session.position == 0
    service.hold_after = None
    assert [event.position async for event in session.generate("x", max_tokens=2)] == [2, 3, 3]
    assert len(service.applied["a"]) == 2


async def test_a_generation_without_a_position_is_not_tried_again(
    session: AsyncSession, service: RememberingService, pauses: Pauses
) -> None:
    forget_position(session)
    service.failures["a"] = [AWAY]
    with pytest.raises(errors.UnavailableError):
        await anext(session.generate("x"))
    assert (session.position, pauses) == (None, [])


async def test_a_generation_that_is_told_whole_needs_no_end(
    session: AsyncSession, service: RememberingService, site: Site, pauses: Pauses
) -> None:
    told = []
    service.is_lingering = True
    async for event in session.generate("x", max_tokens=2):
        told.append(event.position)
        if len(told) == 3:
            await site.stop()
    assert (told, session.position, pauses) == ([2, 3, 3], 3, [])
