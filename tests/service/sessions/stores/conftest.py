"""The suite's stores. To add one: a place for it in `places`, and a line here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.redis import redis_server
from tests.service.sessions.stores.places import MemoryPlace, Place, RedisPlace, SqlitePlace, opened
from tidegate.sessions.stores.store import Store


@pytest.fixture(scope="package", params=["memory", "sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    match request.param:
        case "memory":
            yield MemoryPlace()
        case "sqlite":
            yield SqlitePlace(tmp_path_factory.mktemp("sqlite"))
        case "redis":
            with redis_server(appendfsync="no") as server:
                yield RedisPlace(server)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    """A started store on an empty place."""
    place.clear()
    async with opened(place.store()) as store:
        yield store


@pytest.fixture
async def other(place: Place, store: Store) -> AsyncIterator[Store]:
    """Another store on the same place."""
    async with opened(place.store()) as other:
        yield other
