"""Disks that are full, files that were torn or damaged, snapshots that lie: refused clearly, and never served."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.bundles import write_tiny_bundle
from tests.chaos.history import At, Failure, History, Read, Reply, Step
from tests.chaos.offline import Sequence, empty_sequence
from tests.chaos.transports import Calls
from tests.chaos.verify import verify
from tests.chaos.writers import Habit, Writer
from tests.disk import fill, small_disk
from tests.redis import redis_server
from tests.servers import RunningServer, run_tidegate, serving
from tidegate.client import AsyncClient, Client
from tidegate.errors import FailedPreconditionError, InvalidInputError, NotFoundError, UnavailableError
from tidegate.sessions.snapshot import MAGIC, Body, decode_snapshot, encode_snapshot

MODEL = "tiny"
CHUNK, NEXT = (5, 6, 7), (8, 9)
MB = 2**20
ROOM = 64 * 1024  # bytes


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundles", MODEL)
    return tmp_path / "bundles"


@pytest.fixture
def empty(bundles: Path) -> Sequence:
    return empty_sequence(bundles / MODEL / "1")


@asynccontextmanager
async def writer_at(server: RunningServer, history: History, *sessions: str) -> AsyncIterator[Writer]:
    """A client of ``server``, with sessions that it has opened."""
    calls = Calls(server.grpc)
    for session in sessions:
        await calls.open(session, MODEL)
    yield Writer("client", sessions, [calls], Habit.PLAIN, history, 0)
    await calls.close()


async def step_until_full(writer: Writer, server: RunningServer) -> int:
    """Step and open sessions until there is no room; return the position of session ``s``."""
    position = 0
    with Client(server.grpc) as client:
        for number in range(10_000):
            told = await writer.try_once("s", Step(position, CHUNK))
            if told is None:
                return position
            assert isinstance(told, Reply)
            position = told.position
            with contextlib.suppress(UnavailableError):
                client.open(MODEL, id=f"filler-{number}", durable=True)
    raise AssertionError("the disk is not full yet")


async def test_a_full_disk_under_sqlite_loses_nothing_and_room_ends_it(
    tmp_path: Path, bundles: Path, empty: Sequence
) -> None:
    history = History()
    with small_disk(tmp_path / "disk", 8 * MB) as disk:
        with serving(bundles, "--store", "sqlite", "--data-dir", str(disk)) as server:
            async with writer_at(server, history, "s") as writer:
                await writer.settle("s", Step(0, CHUNK))
                ballast = fill(disk, ROOM)
                await step_until_full(writer, server)
                assert set(history.unavailable) == {"STORE_FULL"}
                ballast.unlink()
                await writer.settle("s", Step(await where(writer), NEXT))
            server.tell(signal.SIGKILL)
            server.wait()
        with serving(bundles, "--store", "sqlite", "--data-dir", str(disk)) as server:
            async with writer_at(server, history) as writer:
                await writer.settle("s", Step(await where(writer), NEXT))
    assert verify(history.operations, empty).problem is None


async def where(writer: Writer) -> int:
    told = await writer.settle("s", Read())
    assert isinstance(told, At)
    return told.position


async def test_a_full_disk_under_redis_loses_nothing_and_room_ends_it(
    tmp_path: Path, bundles: Path, empty: Sequence
) -> None:
    """With `appendfsync always` Redis ends itself when it cannot write; it is started again when there is room."""
    history = History()
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk", 4 * MB))
        redis = stack.enter_context(redis_server("--dir", str(disk)))
        server = stack.enter_context(serving(bundles, "--store", redis.url))
        async with writer_at(server, history, "s") as writer:
            await writer.settle("s", Step(0, CHUNK))
            ballast = fill(disk, ROOM)
            position = 0
            while (told := await writer.try_once("s", Step(await where(writer), CHUNK))) is not None:
                assert isinstance(told, Reply)
                position = told.position
            assert position > 0
            ballast.unlink()
            redis.restart()
            await writer.settle("s", Step(await where(writer), NEXT))
    assert verify(history.operations, empty).problem is None


def store_file(folder: Path) -> Path:
    """The one SQLite file of a data directory."""
    (file,) = (path for path in folder.iterdir() if path.read_bytes()[:6] == b"SQLite")
    return file


def step_and_kill(bundles: Path, data: Path) -> list[int]:
    """Step session ``s`` through CHUNK again and again, then kill the server; return the positions that it had."""
    with serving(bundles, "--data-dir", str(data)) as server:
        with Client(server.grpc) as client:
            session = client.open(MODEL, id="s", durable=True)
            positions = [0, *(session.step(tokens=CHUNK).position for _ in range(40))]
        server.tell(signal.SIGKILL)
        server.wait()
    return positions


async def position_after_tear(bundles: Path, data: Path, empty: Sequence) -> int | None:
    """Where ``s`` is; its state is checked to be that of CHUNK again and again. None: it is not known."""
    history = History()
    with serving(bundles, "--data-dir", str(data)) as server:
        async with writer_at(server, history) as writer:
            told = await writer.settle("s", Read())
            if isinstance(told, Failure):
                assert told.reason == "UNKNOWN_SESSION"
                return None
            reply = await writer.settle("s", Step(told.position, NEXT))
    assert isinstance(reply, Reply)
    assert empty.then(CHUNK * (told.position // len(CHUNK))).then(NEXT).gives(reply, len(NEXT))
    return told.position


async def test_a_torn_log_gives_an_earlier_state_and_never_a_wrong_one(
    tmp_path: Path, bundles: Path, empty: Sequence
) -> None:
    """As a loss of power may leave it: the end of SQLite's log is missing, or is something else."""
    positions = step_and_kill(bundles, tmp_path / "data")
    file = store_file(tmp_path / "data")
    content, log = file.read_bytes(), file.with_name(f"{file.name}-wal").read_bytes()
    chance, found = random.Random(0), []
    for number, share in enumerate((0.3, 0.6, 0.9, 0.999)):
        torn = tmp_path / f"torn-{number}"
        torn.mkdir()
        cut = int(share * len(log))
        (torn / file.name).write_bytes(content)
        (torn / f"{file.name}-wal").write_bytes(log[:cut] + (chance.randbytes(len(log) - cut) if number % 2 else b""))
        found.append(await position_after_tear(bundles, torn, empty))
    assert found == sorted(found, key=lambda position: position or 0)
    assert set(found) - {None} <= set(positions)
    assert len(set(found)) > 2, "the cuts lie where they show"


def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, bundles: Path) -> None:
    with serving(bundles, "--data-dir", str(tmp_path / "data")) as server:
        with Client(server.grpc) as client:
            client.open(MODEL, durable=True).step(tokens=CHUNK)
        server.tell(signal.SIGTERM)  # all of the log is moved into the file
        assert server.wait() == 0
    file = store_file(tmp_path / "data")
    file.write_bytes(b"SQLite no more" + file.read_bytes()[14:])
    result = run_tidegate("serve", "--bundles", str(bundles), *NOWHERE, "--data-dir", str(tmp_path / "data"))
    assert result.returncode == 2
    assert str(file) in result.stderr
    assert "damaged" in result.stderr


NOWHERE = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


def bodies_that_lie(body: Body) -> Iterator[bytes]:
    """Snapshots with right checksums and wrong content."""

    def changed(change: Callable[[Body], object]) -> bytes:
        copy = Body()
        copy.CopyFrom(body)
        change(copy)
        return encode_snapshot(copy)

    yield changed(lambda each: each.parts.pop())
    yield changed(lambda each: each.parts.extend(body.parts))
    yield changed(lambda each: each.parts[0].shape.append(2**40))
    yield changed(lambda each: setattr(each.parts[0], "dtype", "object"))
    yield changed(lambda each: setattr(each.parts[0], "data", each.parts[0].data * 2))
    yield changed(lambda each: setattr(each.parts[0], "data", b"\xff" * len(each.parts[0].data)))
    yield changed(lambda each: setattr(each.parts[0], "name", "../../etc/passwd"))
    yield changed(lambda each: setattr(each, "position", 0))
    yield changed(lambda each: setattr(each, "model", "absent"))
    yield changed(lambda each: setattr(each, "model_sha256", "0" * 64))
    yield changed(lambda each: setattr(each, "version", "99"))


def altered(snapshot: bytes) -> Iterator[bytes]:
    """Snapshots that something happened to on the way."""
    chance = random.Random(0)
    yield b""
    yield MAGIC
    yield snapshot[:-1]
    yield snapshot + b"\0"
    yield snapshot[:8] + (2).to_bytes(2, "little") + snapshot[10:]
    for _ in range(50):
        at = chance.randrange(len(snapshot))
        yield snapshot[:at] + bytes([snapshot[at] ^ 1 << chance.randrange(8)]) + snapshot[at + 1 :]


async def test_snapshots_that_were_altered_or_lie_are_refused(bundles: Path, empty: Sequence) -> None:
    with serving(bundles, "--store", "none") as server:
        async with AsyncClient(server.grpc) as client, httpx.AsyncClient() as http:
            session = await client.open(MODEL)
            await session.step(tokens=CHUNK)
            snapshot = await session.snapshot()
            for number, bad in enumerate([*altered(snapshot), *bodies_that_lie(decode_snapshot(snapshot))]):
                with pytest.raises(REFUSALS):
                    await client.restore(bad)
                reply = await http.post(f"{server.http}/v1/sessions:restore", content=bad)
                assert 400 <= reply.status_code < 500, number
            assert [each.id async for each in client.sessions()] == [session.id]
            restored = await client.restore(snapshot)
            assert restored.position == len(CHUNK)


REFUSALS = (InvalidInputError, NotFoundError, FailedPreconditionError)
