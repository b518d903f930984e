"""A step whose position is known is repeated while the server is away; nothing else is."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.grpc.fake import FakeService
from tidegate import errors
from tidegate.client import AsyncClient, Client, Retry

AWAY = errors.UnavailableError("away")


def test_pauses_double_up_to_the_longest() -> None:
    assert list(Retry(attempts=6, initial=0.5, longest=3.0).bounds()) == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert list(Retry(attempts=1).bounds()) == []


def test_a_pause_is_drawn_below_its_bound_and_heeds_the_server() -> None:
    retry = Retry(longest=2.0)
    pauses = [retry.pause(0.5, AWAY) for _ in range(100)]
    assert all(0 <= pause <= 0.5 for pause in pauses)
    assert len(set(pauses)) > 50
    assert retry.pause(0.5, errors.UnavailableError("away", retry_after=1.5)) == 1.5
    assert retry.pause(0.5, errors.UnavailableError("away", retry_after=60)) == 2.0


class Pauses(list[float]):
    """Remembers what was to be waited, and waits not."""

    async def wait(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


async def test_a_step_with_a_position_is_repeated(address: str, service: FakeService, pauses: Pauses) -> None:
    service.add_sessions("a")
    async with AsyncClient(address, sleep=pauses.wait) as client:
        session = await client.session("a")
        service.failures["a"] = [AWAY, errors.UnavailableError("draining", reason="DRAINING", retry_after=1.0)]
        assert (await session.step("x")).position == 1
    assert [call.position for call in service.steps] == [0, 0, 0]
    assert pauses[1:] == [1.0]


async def test_a_blocking_step_is_repeated_too(address: str, service: FakeService, pauses: Pauses) -> None:
    service.add_sessions("a")

    def body() -> None:
        with Client(address, sleep=pauses.append) as client:
            session = client.session("a")
            service.failures["a"] = [AWAY]
            assert session.step("x").position == 1

    await asyncio.to_thread(body)
    assert len(pauses) == 1


async def test_repeats_are_bounded(address: str, service: FakeService, pauses: Pauses) -> None:
    service.add_sessions("a")
    async with AsyncClient(address, sleep=pauses.wait, retry=Retry(attempts=3)) as client:
        session = await client.session("a")
        service.failures["a"] = [AWAY] * 5
        with pytest.raises(errors.UnavailableError):
            await session.step("x")
    assert (len(service.steps), len(pauses)) == (3, 2)


async def test_a_step_without_a_position_is_not_repeated(address: str, service: FakeService, pauses: Pauses) -> None:
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
    address: str, service: FakeService, pauses: Pauses, error: errors.TidegateError
) -> None:
    service.add_sessions("a")
    async with AsyncClient(address, sleep=pauses.wait) as client:
        session = await client.session("a")
        service.failures["a"] = [error]
        with pytest.raises(type(error)):
            await session.step("x")
    assert pauses == []
