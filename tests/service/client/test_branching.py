"""Sessions branch, go back, move on and travel, by either client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest

from tests.service.client.threaded import threaded
from tests.service.fake_core import FakeCore
from tidegate import errors
from tidegate.api import RestoreRequest
from tidegate.client import AsyncClient, Client

AWAY = errors.UnavailableError("away", reason="STORE_AWAY")


async def no_wait(seconds: float) -> None:
    """A sleep for those who have no time."""


@pytest.fixture(params=["asyncio", "threads"])
async def client(address: str, service: FakeCore, request: pytest.FixtureRequest) -> AsyncIterator[AsyncClient]:
    service.add_sessions("a")
    if request.param == "asyncio":
        async with AsyncClient(address, timeout=60, sleep=no_wait) as client:
            yield client
    else:
        async with threaded(Client(address, timeout=60, sleep=lambda _: None)) as client:
            yield client


async def test_forks_go_on_by_themselves(client: AsyncClient, service: FakeCore) -> None:
    session = await client.session("a")
    await session.step("xy")
    left, right = await session.fork(ids=["l", "r"])
    assert [left.id, right.id, left.position] == ["l", "r", 2]
    assert (await left.step("z")).position == 3
    assert (right.position, session.position) == (2, 2)
    assert len(await session.fork(count=3)) == 3
    assert len(await session.fork()) == 1
    assert service.branched == [("fork", "a", ["l", "r"], None), ("fork", "a", None, 3), ("fork", "a", None, None)]


async def test_a_session_goes_back_to_a_checkpoint(client: AsyncClient, service: FakeCore) -> None:
    session = await client.session("a")
    await session.step("xy")
    named, unnamed = await session.checkpoint("here"), await session.checkpoint()
    assert (named.checkpoint, named.position, unnamed.position) == ("here", 2, 2)
    await session.step("z")
    for checkpoint in ("here", unnamed):
        assert (await session.rewind(checkpoint)).position == session.position == 2
        assert (await session.step("z")).position == 3
    assert session.info.checkpoints == ("here", unnamed.checkpoint)
    with pytest.raises(errors.NotFoundError) as caught:
        await session.rewind("nowhere")
    assert (caught.value.reason, session.position) == ("UNKNOWN_CHECKPOINT", 3)


async def test_a_session_moves_to_another_version(client: AsyncClient, service: FakeCore) -> None:
    session = await client.session("a")
    assert (await session.upgrade("1")).version == session.info.version == "1"
    assert (await session.upgrade()).version == "2"


async def test_a_snapshot_is_restored(client: AsyncClient, service: FakeCore) -> None:
    session = await client.session("a")
    await session.step("xy")
    snapshot = await session.snapshot()
    async with await client.restore(snapshot, id="b", durable=True, ttl_seconds=60, idle_seconds=5) as copy:
        assert (copy.id, copy.position, copy.info.durable) == ("b", 2, True)
        assert (await copy.step("z")).position == 3
    assert (await client.restore(snapshot)).position == 2
    assert [wish for _, wish in service.restored] == [
        RestoreRequest("b", durable=True, ttl_seconds=60, idle_seconds=5),
        RestoreRequest(),
    ]


async def test_questions_are_asked_again_and_changes_are_not(client: AsyncClient, service: FakeCore) -> None:
    session = await client.session("a")
    service.failures["a"] = [AWAY] * 4
    assert await session.snapshot()
    assert service.failures["a"] == []
    service.failures["a"] = [AWAY] * 4
    assert (await session.fork(ids=["b"]))[0].id == "b"
    for change in (session.fork, session.checkpoint, session.upgrade, partial(session.rewind, "here")):
        service.failures["a"] = [AWAY]
        with pytest.raises(errors.UnavailableError):
            await change()
        assert service.failures["a"] == []
    service.failures["a"] = [AWAY]
    await session.close()
    assert "a" not in service.sessions


async def test_an_opening_can_be_a_restoring_too(address: str, service: FakeCore) -> None:
    service.add_sessions("a")
    async with AsyncClient(address) as client:
        snapshot = await (await client.session("a")).snapshot()
        async with client.restore(snapshot, id="b") as session:
            assert session.id == "b"
        assert "b" not in service.sessions
