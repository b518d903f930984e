"""Durable sessions of the real core, whose servers come and go under the client: nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.bundles import VOCABULARY, write_tiny_bundle
from tests.service.grpc_server import GrpcServer
from tidegate.api import GenerationDone
from tidegate.client import AsyncClient, Client
from tidegate.config import load_settings
from tidegate.service import Service

TEXT = "ROMEO: But, soft! what light through yonder window breaks?"


class Host:
    """Servers on one port over one data directory, one after the other."""

    def __init__(self, directory: Path) -> None:
        self._settings = load_settings({"bundles": directory, "store": "sqlite", "data_dir": directory / "data"})
        self._running: tuple[Service, GrpcServer] | None = None
        self._loop = asyncio.get_running_loop()
        self.port = 0
        self.num_stops = 0

    async def start(self) -> None:
        service = Service(self._settings)
        await service.start()
        server = GrpcServer(service, f"127.0.0.1:{self.port}")
        self.port = server.port
        await server.start()
        self._running = service, server

    async def stop(self) -> None:
        """At once, whatever is in flight."""
        if self._running is not None:
            (service, server), self._running = self._running, None
            self.num_stops += 1
            await server.stop()
            await service.stop()

    async def sleep(self, seconds: float) -> None:
        """A client's sleep: the next server comes meanwhile."""
        if self._running is None:
            await self.start()

    def block(self, seconds: float) -> None:
        """`sleep` for a client in a thread."""
        asyncio.run_coroutine_threadsafe(self.sleep(seconds), self._loop).result()

    def fall(self) -> None:
        """`stop` for a client in a thread."""
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    write_tiny_bundle(tmp_path)
    host = Host(tmp_path)
    await host.start()
    yield host
    await host.stop()


@pytest.fixture
async def client(host: Host) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{host.port}", timeout=60, sleep=host.sleep) as client:
        yield client


async def surprises(client: AsyncClient) -> list[float]:
    """Of the whole text, undisturbed."""
    surprise = (await client.predict("tiny", [TEXT], every_step=True)).predictions[0].surprise
    assert surprise is not None
    assert surprise.steps is not None
    return list(surprise.steps)


async def by_calls(client: AsyncClient, between: Callable[[int], Awaitable[None]]) -> list[float]:
    told = []
    session = await client.open("tiny", durable=True)
    for index, letter in enumerate(TEXT):
        await between(index)
        reply = await session.step(letter)
        assert reply.prediction.surprise is not None
        told.append(reply.prediction.surprise.mean)
    assert (await client.session(session.id)).position == len(TEXT)
    return told


async def by_stream(client: AsyncClient, between: Callable[[int], Awaitable[None]]) -> list[float]:
    told = []
    session = await client.open("tiny", durable=True)
    async with session.stream() as stream:
        for letter in TEXT:
            await stream.send(letter)
        for index in range(len(TEXT)):
            await between(index)
            reply = await stream.receive()
            assert reply.prediction.surprise is not None
            told.append(reply.prediction.surprise.mean)
    assert (await client.session(session.id)).position == len(TEXT)
    return told


async def by_columns(client: AsyncClient, between: Callable[[int], Awaitable[None]]) -> list[float]:
    told = []
    sessions = [await client.open("tiny", durable=True) for _ in range(2)]
    async with client.stream() as stream:
        await stream.attach(sessions)
        for index, letter in enumerate(TEXT):
            await between(index)
            result = await stream.step([0, 1], tokens=[VOCABULARY.index(letter)] * 2)
            assert (result.positions, result.errors) == ([index + 1] * 2, {})
            assert result.surprise is not None
            told.append(float(result.surprise[1]))
    return told


@pytest.mark.parametrize("way", [by_calls, by_stream, by_columns])
async def test_a_text_is_stepped_over_several_servers(
    client: AsyncClient,
    host: Host,
    way: Callable[[AsyncClient, Callable[[int], Awaitable[None]]], Awaitable[list[float]]],
) -> None:
    async def between(index: int) -> None:
        if index % 20 == 7:
            await host.stop()

    expected = await surprises(client)
    assert await way(client, between) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert host.num_stops == 3


async def test_a_blocking_client_goes_on_too(host: Host) -> None:
    def body() -> list[int | None]:
        with Client(f"127.0.0.1:{host.port}", timeout=60, sleep=host.block) as client:
            session = client.open("tiny", durable=True, id="mine")
            with session.stream() as stream:
                positions = [stream.step("a").position]
                host.fall()
                positions.append(stream.step("b").position)
            host.fall()
            positions.append(session.step("c").position)
            return [*positions, client.session("mine").position]

    assert await asyncio.to_thread(body) == [1, 2, 3, 3]


async def test_a_generation_is_told_over_several_servers(client: AsyncClient, host: Host) -> None:
    expected = [event async for event in client.generate("tiny", "RO", max_tokens=60, seed=5)]
    session = await client.open("tiny", durable=True)
    told = []
    async for event in session.generate("RO", max_tokens=60, seed=5):
        told.append(event)
        if len(told) in {10, 30}:
            await host.stop()
    assert told == expected
    assert isinstance(told[-1], GenerationDone)
    assert session.position == told[-1].position == 62
    assert host.num_stops == 2
