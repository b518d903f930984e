"""Stores of format 1: their sessions go on as if nothing had been, whatever cuts the migration short."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.clock import ManualClock
from tests.redis import RedisServer, redis_server
from tests.service.serving import collect, started
from tests.service.sessions import format1
from tests.service.sessions.format1 import FIXTURE, Row, assert_close, plain, write_models
from tests.service.sessions.replicas import MODEL, step
from tidegate.api import Input, Sampling, SessionRequest
from tidegate.cli import app
from tidegate.clock import Clock
from tidegate.config import load_settings
from tidegate.errors import ConfigurationError, InternalError, SessionEndedError
from tidegate.service import Service
from tidegate.sessions.ids import key_of
from tidegate.sessions.records import decode_record
from tidegate.sessions.stores.redis import RedisStore
from tidegate.sessions.stores.redis_commands import FORMAT_KEY, MIGRATING
from tidegate.sessions.stores.sqlite import SqliteStore
from tidegate.sessions.stores.store import FORMAT, Store

STEPPED = FIXTURE["next"].keys() - {"kept@three", "kept@seven"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def rows(models: Path) -> dict[str, Row]:
    return format1.rows(models)


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server(appendfsync="no") as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.call("FLUSHALL")
    return shared


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.sqlite3"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["sessions", "migrate", *arguments])
    return result.exit_code, result.output


async def run_beside(*arguments: str) -> tuple[int, str]:
    """As `run`; a command has a loop of its own."""
    return await asyncio.to_thread(run, *arguments)


@asynccontextmanager
async def serving(models: Path, store: Store, clock: Clock) -> AsyncIterator[Service]:
    settings = load_settings({"bundles": models, "idle_seconds": "none", "store_timeout": 30})
    async with started(service := Service(settings, clock, store)):
        yield service


def clock() -> Clock:
    manual = ManualClock()
    return Clock(lambda: manual.now, lambda: format1.WALL + 2000)


async def test_sessions_of_a_sqlite_file_go_on(models: Path, rows: dict[str, Row], path: Path) -> None:
    format1.write_sqlite(path, rows)
    time = clock()
    async with serving(models, SqliteStore(path, clock=time), time) as service:
        await assert_they_go_on(service)
    # And on: the file is of the served format now.
    async with serving(models, SqliteStore(path, clock=time), time) as service:
        assert (await service.get_session("plain")).position == 5


async def test_sessions_of_a_redis_go_on(models: Path, rows: dict[str, Row], server: RedisServer) -> None:
    format1.write_redis(server, rows)
    code, output = await run_beside("--store", server.url, "--json")
    assert (code, json.loads(output)) == (0, {"num_sessions": len(rows), "num_damaged": 0, "backup": None})
    time = clock()
    async with serving(models, RedisStore(server.url), time) as service:
        await assert_they_go_on(service)
    assert all(b"}:session:default:" in name for name in server.call("KEYS", "*:session:*"))
    indexed = [
        member
        for kind in ("due", "listed")
        for index in server.call("KEYS", f"*:{kind}")
        for member in server.call("ZRANGE", index, 0, -1)
    ]
    assert all(member.startswith(b"default:") for member in indexed)


async def assert_they_go_on(service: Service) -> None:
    """Listed as they were; repeats told bit for bit; what they say next is what they would have said; ends stay."""
    listed = (await service.list_sessions(100)).sessions
    assert {info.id: plain(info) for info in listed} == FIXTURE["listed"]
    for id_, reason in FIXTURE["ended"].items():
        with pytest.raises(SessionEndedError) as caught:
            await step(service, "x", None, id_)
        assert caught.value.reason == reason
    said = FIXTURE["said"]
    assert plain(await step(service, "hel", 0, "plain", top=3, every_step=True)) == said["plain"]
    assert plain(await step(service, "l", 2, "usual")) == said["usual"]
    assert plain(await step(service, "The tide comes in, t", 0, "charted")) == said["charted"]
    sampling = Sampling(max_tokens=6, temperature=0.8)
    tokens, done = await collect(service.generate_on_session("drawn", Input(text="ab"), sampling, position=0))
    assert plain([*tokens, done]) == said["drawn"]
    for id_ in sorted(STEPPED):
        if id_ != "sequence":
            assert_close(plain(await step(service, "lo", None, id_, top=5)), FIXTURE["next"][id_])
    for name in ("three", "seven"):
        assert (await service.rewind_session("kept", name)).checkpoints == ("three", "seven")
        assert_close(plain(await step(service, "lo", None, "kept", top=5)), FIXTURE["next"][f"kept@{name}"])
    # An equal opening finds what it opened.
    again = await service.open_session(SessionRequest(MODEL, "1", durable=True, id="fresh", seed=3))
    assert again.position == 2
    await service.expire()


# SQLite: a copy first, and all or nothing


def formats(directory: Path) -> dict[str, int]:
    """The format of each file."""
    found = {}
    for file in directory.iterdir():
        with contextlib.closing(sqlite3.connect(file)) as connection:
            (found[file.name],) = connection.execute("PRAGMA user_version").fetchone()
    return found


async def test_the_file_is_copied_before_it_is_changed(rows: dict[str, Row], path: Path) -> None:
    format1.write_sqlite(path, rows)
    with contextlib.closing(sqlite3.connect(path)) as file:
        before = list(file.iterdump())
    store = SqliteStore(path)
    await store.start()
    await store.stop()
    assert formats(path.parent) == {path.name: FORMAT, f"{path.name}.format-1.bak": 1}
    copy = path.with_name(f"{path.name}.format-1.bak")
    assert copy.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as file:
        assert list(file.iterdump()) == before
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def many(rows: dict[str, Row]) -> dict[str, Row]:
    """The sessions, and thousands of others which nobody reads."""
    more = {f"more{number}": rows["usual"] for number in range(6000)}
    return {**rows, **{id_: row._replace(revision=os.urandom(16)) for id_, row in more.items()}}


def kill_once(there: Path, code: str) -> None:
    """Run the code in a process, and kill it once there is that file."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        while not there.exists() and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("moment", ["copying", "moving", "later"])
async def test_a_migration_that_is_killed_leaves_the_file_as_it_was_and_is_begun_again(
    rows: dict[str, Row], path: Path, moment: str
) -> None:
    format1.write_sqlite(path, many(rows))
    code = f"""
import asyncio, logging
from pathlib import Path
from tidegate.sessions.stores.sqlite import SqliteStore
asyncio.run(SqliteStore(Path({str(path)!r})).start())
print("done", flush=True)
"""
    copy = path.with_name(f"{path.name}.format-1.bak")
    begun = {
        "copying": copy.with_name(f"{copy.name}.part"),
        "moving": copy,
        "later": path.with_name(f"{path.name}-wal"),
    }
    kill_once(begun[moment], code)
    store = SqliteStore(path)
    await store.start()
    found = await store.read([key_of(id_) for id_ in ("plain", "kept", "closed")])
    assert all(found)
    shown = await store.page("default", 10_000, "")
    assert len(shown) == 6000 + len(FIXTURE["listed"])
    await store.stop()
    names = formats(path.parent)
    assert (names[path.name], names[copy.name]) == (FORMAT, 1)


async def test_servers_that_start_at_once_migrate_once(rows: dict[str, Row], path: Path) -> None:
    format1.write_sqlite(path, rows)
    stores = [SqliteStore(path, busy_seconds=20) for _ in range(4)]
    for store in stores:
        await store.start()
    assert [len(await store.page("default", 99, "")) for store in stores] == [len(FIXTURE["listed"])] * 4
    for store in stores:
        await store.stop()


async def test_a_damaged_session_stays_damaged_and_holds_up_no_other(rows: dict[str, Row], path: Path) -> None:
    format1.write_sqlite(path, rows)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE sessions SET record = zeroblob(length(record)) WHERE id = 'plain'")
        file.execute("UPDATE sessions SET checksum = 7, record = 'text' WHERE id = 'usual'")
        file.execute("UPDATE attachments SET content = zeroblob(9) WHERE name = 'three'")
    store = SqliteStore(path)
    await store.start()
    plain_, usual, kept = await store.read([key_of(id_) for id_ in ("plain", "usual", "kept")])
    for id_, entry in (("plain", plain_), ("usual", usual)):
        assert entry is not None
        with pytest.raises(InternalError) as caught:
            decode_record(key_of(id_), entry)
        assert caught.value.reason == "STORE_CORRUPT"
    assert kept is not None
    assert decode_record(key_of("kept"), kept).summary.position == 8
    await store.stop()


def test_a_sqlite_file_may_be_migrated_before_the_server_starts(rows: dict[str, Row], path: Path) -> None:
    format1.write_sqlite(path, rows)
    code, output = run("--store", "sqlite", "--data-dir", str(path.parent), "--json")
    assert code == 0
    backup = f"{path}.format-1.bak"
    assert json.loads(output) == {"num_sessions": len(rows), "num_damaged": 0, "backup": backup}
    assert run("--store", "sqlite", "--data-dir", str(path.parent)) == (0, "Nothing to migrate.\n")


def test_a_file_that_is_not_there_is_told(path: Path) -> None:
    code, output = run("--store", "sqlite", "--data-dir", str(path.parent))
    assert code == 2
    assert "no such file" in output


async def test_a_disk_without_room_for_the_copy_leaves_the_file_as_it_was(rows: dict[str, Row], path: Path) -> None:
    format1.write_sqlite(path, rows)
    path.with_name(f"{path.name}.format-1.bak").mkdir()  # nothing can be put there
    with pytest.raises(ConfigurationError, match="cannot be copied before it is migrated"):
        await SqliteStore(path).start()
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (1,)


# Redis: a command, with every server stopped


async def test_a_server_refuses_an_old_redis_and_names_the_command(rows: dict[str, Row], server: RedisServer) -> None:
    format1.write_redis(server, rows)
    before = sorted(server.call("KEYS", "*"))
    for stored in ("1", MIGRATING):
        server.call("SET", FORMAT_KEY, stored)
        with pytest.raises(ConfigurationError, match="stop every server, run `tidegate sessions migrate --store URL`"):
            await RedisStore(server.url).start()
    assert sorted(server.call("KEYS", "*")) == before


async def test_a_migration_of_redis_goes_on_where_it_was_cut_short(
    models: Path, rows: dict[str, Row], server: RedisServer
) -> None:
    """Sessions of both formats, one in both: written anew, and not yet gone from where it was."""
    format1.write_redis(server, rows)
    old = {name: server.call("DUMP", name) for name in server.call("KEYS", "*")}
    assert (await run_beside("--store", server.url))[0] == 0
    for name in sorted(old)[::3]:
        if b":session:" in name:
            server.call("RESTORE", name, 0, old[name])
    server.call("SET", FORMAT_KEY, MIGRATING)
    code, output = await run_beside("--store", server.url)
    assert (code, "sessions migrated" in output) == (0, True)
    assert not [name for name in server.call("KEYS", "*:session:*") if b":session:default:" not in name]
    async with serving(models, RedisStore(server.url), clock()) as service:
        await assert_they_go_on(service)


async def test_redis_is_migrated_only_when_no_server_is_connected(rows: dict[str, Row], server: RedisServer) -> None:
    store = RedisStore(server.url)
    await store.start()
    server.call("SET", FORMAT_KEY, 1)
    code, output = await run_beside("--store", server.url)
    assert (code, "stop every server" in output) == (2, True)
    await store.stop()
    format1.write_redis(server, rows)
    assert (await run_beside("--store", server.url))[0] == 0
    assert await run_beside("--store", server.url) == (0, "Nothing to migrate.\n")


def test_a_newer_redis_is_refused(server: RedisServer) -> None:
    server.call("SET", FORMAT_KEY, FORMAT + 1)
    code, output = run("--store", server.url)
    assert (code, f"format {FORMAT + 1}" in output) == (2, True)


async def test_a_damaged_session_of_redis_stays_damaged(
    models: Path, rows: dict[str, Row], server: RedisServer
) -> None:
    format1.write_redis(server, {**rows, "usual": rows["usual"]._replace(record=b"no record")})
    assert json.loads((await run_beside("--store", server.url, "--json"))[1])["num_damaged"] == 1
    async with serving(models, RedisStore(server.url), clock()) as service:
        with pytest.raises(InternalError) as caught:
            await step(service, "x", None, "usual")
        assert caught.value.reason == "STORE_CORRUPT"
        assert (await step(service, "lo", 3, "plain")).position == 5


def test_a_redis_that_is_away_is_told() -> None:
    code, output = run("--store", "redis://127.0.0.1:1/0")
    assert (code, "Redis" in output) == (1, True)
