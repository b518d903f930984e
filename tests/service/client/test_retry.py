"""A step whose position is known is repeated while the server is away; nothing else is."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.fake_core import FakeCore
from tidegate import errors
from tidegate.client import AsyncClient, Client, Retry

AWAY = errors.UnavailableError("away")


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_bounds_of_pauses_double_up_to_the_longest() -> None:
    retry = Retry(attempts=6, initial=0.5, longest=3.0)
    drawn: list[list[float]] = [[] for _ in range(5)]
    for _ in range(200):
        tries = retry.begin(Clock())
        for pauses in drawn:
            pause = tries.next_pause(AWAY)
            assert pause is not None
            pauses.append(pause)
        assert tries.next_pause(AWAY) is None
    for pauses, bound in zip(drawn, [0.5, 1.0, 2.0, 3.0, 3.0], strict=True):
        assert 0 <= min(pauses) < bound / 4
        assert bound / 2 < max(pauses) <= bound


def test_a_pause_heeds_the_server_but_not_for_ever() -> None:
    tries = Retry(initial=0.5, longest=2.0).begin(Clock())
    assert tries.next_pause(errors.UnavailableError("away", retry_after=1.5)) == 1.5
    assert tries.next_pause(errors.UnavailableError("away", retry_after=60)) == 2.0


def test_one_attempt_is_no_repeat() -> None:
    assert Retry(attempts=1).begin(Clock()).next_pause(AWAY) is None


def test_tries_end_with_their_time() -> None:
    clock = Clock()
    tries = Retry(longest=2.0, total=10.0).begin(clock)
    clock.now = 7.0
    assert tries.connect_timeout == 2.0
    assert tries.next_pause(AWAY) is not None
    clock.now = 9.5
    assert tries.connect_timeout == 0.5
    assert tries.next_pause(errors.UnavailableError("away", retry_after=1)) is None
    clock.now = 11.0
    assert tries.connect_timeout == 0


class Pauses(list[float]):
    """Remembers what was to be waited, and waits not."""

    async def wait(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


async def test_a_step_with_a_position_is_repeated(address: str, service: FakeCore, pauses: Pauses) -> None:
    service.add_sessions("a")
    async with AsyncClient(address, sleep=pauses.wait) as client:
        session = await client.session("a")
        service.failures["a"] = [AWAY, errors.UnavailableError("draining", reason="DRAINING", retry_after=1.0)]
        assert (await session.step("x")).position == 1
    assert [call.position for call in service.steps] == [0, 0, 0]
    assert pauses[1:] == [1.0]


async def test_a_blocking_step_is_repeated_too(address: str, service: FakeCore, pauses: Pauses) -> None:
    service.add_sessions("a")

    def body() -> None:
        with Client(address, sleep=pauses.append) as client:
            session = client.session("a")
            service.failures["a"] = [AWAY]
            assert session.step("x").position == 1

    await asyncio.to_thread(body)
    assert len(pauses) == 1


async def test_repeats_are_bounded(address: str, service: FakeCore, pauses: Pauses) -> None:
    service.add_sessions("a")
    async with AsyncClient(address, sleep=pauses.wait, retry=Retry(attempts=3)) as client:
        session = await client.session("a")
        service.failures["a"] = [AWAY] * 5
        with pytest.raises(errors.UnavailableError):
            await session.step("x")
    assert (len(service.steps), len(pauses)) == (3, 2)


async def test_a_step_without_a_position_is_not_repeated(address: str, service: FakeCore, pauses: Pauses) -> None:
    service.add_sessions("a")
    async with AsyncClient(address, sleep=pauses.wait) as client:
        session = await client.session("a")
        session.position = None
        service.failures["a"] = [AWAY]
        with pytest.raises(errors.UnavailableError):
            await session.step("x")
    assert (len(service.steps), pauses) == (1, [])


@pytest.mark.parametrize("error", [errors.OverloadedError("full"), errors.DeadlineExceededError("late")])
async def test_other_errors_are_not_repeated(
    address: str, service: FakeCore, pauses: Pauses, error: errors.TidegateError
) -> None:
    service.add_sessions("a")
    async with AsyncClient(address, sleep=pauses.wait) as client:
        session = await client.session("a")
        service.failures["a"] = [error]
        with pytest.raises(type(error)):
            await session.step("x")
    assert pauses == []
