"""The figures of two workers in one process, each behind its socket: one dies and comes again."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.service.fake_core import FakeCore
from tests.service.grpc_server import GrpcServer
from tidegate.clock import Clock
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.metrics import WorkerMetrics
from tidegate.cluster.peers import Peers
from tidegate.config import load_settings
from tidegate.observability.families import Family, Labels, Snapshot, Value


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's folder: a Unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@dataclass
class Life:
    """A worker from its start to its end. `die` leaves it as SIGKILL does."""

    figures: WorkerMetrics
    server: GrpcServer
    counted: dict[str, float] = field(default_factory=dict)

    async def die(self) -> None:
        self.figures._writing.cancel()  # noqa: SLF001 - nobody else ends a worker without its last words
        await self.server.stop()

    async def told(self) -> dict[str, float]:
        """What it says of all workers: counters by series, and the gauge ``alive``."""
        found: dict[str, float] = {}
        for family in await self.figures.all():
            for key, value in family.values.items():
                assert isinstance(value, float)
                found["".join(key) or family.name] = value
        return found


@asynccontextmanager
async def living(folder: Path | None, number: int) -> AsyncIterator[Life]:
    counted: dict[str, float] = {}

    async def own() -> Snapshot:
        values: dict[Labels, Value] = {(name,): value for name, value in counted.items()}
        return [
            Family("some", "counter", "Some.", ("name",), values),
            Family("alive", "gauge", "Alive.", (), {(): 1.0}),
        ]

    worker = WorkerInfo("test", number, 2, folder)
    peers = Peers(worker, load_settings({}), Clock())
    figures = WorkerMetrics(worker, peers, own)
    server = GrpcServer(FakeCore(), worker.address(number), more=[figures.handler()])
    await server.start()
    try:
        yield Life(figures, server, counted)
    finally:
        await server.stop()
        await figures.stop()
        await peers.close()


async def test_either_tells_the_sum(folder: Path) -> None:
    async with living(folder, 0) as one, living(folder, 1) as two:
        one.counted.update(a=1.0, b=2.0)
        two.counted.update(a=10.0)
        assert await one.told() == await two.told() == {"a": 11.0, "b": 2.0, "alive": 2.0}


async def test_a_dead_worker_s_counters_stay_and_its_gauges_vanish(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(living(folder, 0))
        two = await stack.enter_async_context(living(folder, 1))
        two.counted.update(a=10.0)
        assert (await one.told())["alive"] == 2
        await two.die()
        assert await one.told() == {"a": 10.0, "alive": 1.0}


async def test_what_was_told_a_moment_before_a_kill_is_not_lost(folder: Path) -> None:
    async with living(folder, 0) as one, living(folder, 1) as two:
        for value in (1.0, 5.0, 6.0):
            two.counted["a"] = value
            assert (await one.told())["a"] == value
        two.counted["a"] = 7.0  # told to nobody
        await two.die()
        assert (await one.told())["a"] == 6.0
        two.counted["a"] = 6.0


async def test_the_next_worker_of_the_seat_counts_on(folder: Path) -> None:
    async with living(folder, 0) as one:
        for life in range(1, 4):
            async with living(folder, 1) as two:
                two.counted["a"] = 5.0
                assert (await one.told())["a"] == 5.0 * life
                assert (await two.told())["a"] == 5.0 * life
            assert (await one.told())["a"] == 5.0 * life


async def test_a_worker_that_never_lived_is_no_trouble(folder: Path) -> None:
    async with living(folder, 0) as one:
        one.counted["a"] = 1.0
        assert await one.told() == {"a": 1.0, "alive": 1.0}


async def test_what_cannot_be_written_is_told_all_the_same(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with living(folder, 0) as one:
        (folder / "0.part").mkdir()
        one.counted["a"] = 1.0
        assert await one.told() == {"a": 1.0, "alive": 1.0}
        assert "could not save the metrics" in caplog.text
        (folder / "0.part").rmdir()


async def test_without_a_folder_the_figures_of_all_are_told_by_the_living() -> None:
    worker = WorkerInfo("test", 0, 1, None)
    figures = WorkerMetrics(worker, Peers(worker, load_settings({}), Clock()), _one)
    assert [family.name for family in await figures.all()] == ["one"]
    await figures.stop()


async def _one() -> Snapshot:
    return [Family("one", "counter", "One.", (), {(): 1.0})]
