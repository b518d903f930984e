"""What only the SQLite store has: a file, its format, its faults, and other processes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.sessions.stores import writer
from tests.service.sessions.stores.places import after, all_due, entry, first, key, keys, opened
from tidegate.api import SessionRequest
from tidegate.errors import ConfigurationError, InternalError, TidegateError, UnavailableError
from tidegate.sessions.records import (
    decode_checkpoint,
    decode_record,
    decode_summary,
    encode_checkpoint,
    encode_record,
    new_record,
)
from tidegate.sessions.stores import sqlite
from tidegate.sessions.stores.sqlite import SqliteStore
from tidegate.sessions.stores.sqlite_file import BACKSTOP_PAGES, PAGE_BYTES
from tidegate.sessions.stores.store import FORMAT, Store, Write

KILOBYTES = bytes(range(256)) * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with opened(SqliteStore(path, busy_seconds=0.01)) as store:
        yield store


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, as any program sees it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def put(path: Path, content: bytes | bytearray) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


async def fill(path: Path, *writes: Write) -> None:
    async with opened(SqliteStore(path)) as store:
        assert all(await store.write(writes))


async def refusal(path: Path) -> ConfigurationError:
    store = SqliteStore(path)
    with pytest.raises(ConfigurationError) as caught:
        await store.start()
    await store.stop()
    assert str(path) in caught.value.message
    return caught.value


# The file


async def test_directory_and_file_are_made_for_their_owner_only(path: Path, store: Store) -> None:
    await store.write([first("s")])
    names = files(path.parent)
    assert sorted(names) == ["sessions.sqlite", "sessions.sqlite-shm", "sessions.sqlite-wal"]
    assert {path.with_name(name).stat().st_mode & 0o777 for name in names} == {0o600}


@pytest.mark.parametrize("synchronous", ["normal", "full"])
async def test_both_ways_to_sync_keep_what_was_written(path: Path, synchronous: str) -> None:
    async with opened(SqliteStore(path, "full" if synchronous == "full" else "normal")) as store:
        await store.write([first("s")])
    with raw(path) as file:
        assert file.execute("SELECT id, body FROM sessions").fetchall() == [("s", b"new")]


async def test_a_path_may_hold_what_urls_may_not(tmp_path: Path) -> None:
    strange = tmp_path / "a b?mode=ro#x%41" / "ü.sqlite"
    await fill(strange, first("s"))
    assert strange.is_file()


async def test_many_stores_may_make_the_file_at_once(path: Path) -> None:
    stores = [SqliteStore(path) for _ in range(8)]
    await asyncio.gather(*(store.start() for store in stores))
    made = await asyncio.gather(*(store.write([first(f"s{n}")]) for n, store in enumerate(stores)))
    assert made == [[True]] * 8
    assert len(await stores[0].page("t", 99, "")) == 8
    await asyncio.gather(*(store.stop() for store in stores))


async def test_nothing_is_asked_of_a_store_that_is_not_open(path: Path) -> None:
    store = SqliteStore(path)
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            await store.read(keys(["s"]))
        assert caught.value.reason == "STORE_AWAY"
        await store.start()
        await store.stop()


@pytest.mark.parametrize(
    "statement",
    [value for name, value in vars(sqlite).items() if name.isupper() and isinstance(value, str)],
)
async def test_no_statement_reads_more_rows_the_more_there_are(path: Path, store: Store, statement: str) -> None:
    with raw(path) as file:
        plan = [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?"))]
    assert not [line for line in plan if line.startswith("SCAN") or "TEMP B-TREE" in line]


async def test_the_log_does_not_grow_with_what_was_written(path: Path) -> None:
    async with opened(SqliteStore(path)) as store:
        await write_much(store)
        log = path.with_name(f"{path.name}-wal")
        assert log.stat().st_size < BACKSTOP_PAGES * PAGE_BYTES * 1.5


async def write_much(store: Store) -> None:
    """Twice what the log may hold."""
    size = 2**20
    write = first("s", bytes(size))
    await store.write([write])
    for number in range(BACKSTOP_PAGES * PAGE_BYTES * 2 // size):
        # Pages that a write leaves as they are would not be written.
        write = after(write, bytes([number % 255 + 1]) * size)
        assert await store.write([write]) == [True]


# What can never work


async def test_a_newer_format_is_refused_with_both_formats(path: Path) -> None:
    await fill(path, first("s"))
    with raw(path) as file:
        file.execute(f"PRAGMA user_version = {FORMAT + 1}")
    error = await refusal(path)
    assert f"format {FORMAT + 1}" in error.message
    assert f"format {FORMAT}" in error.message


async def test_another_programs_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.sqlite"
    with raw(path) as file:
        file.execute("CREATE TABLE theirs (x)")
    before = files(tmp_path)
    assert "another program" in (await refusal(path)).message
    assert files(tmp_path) == before


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "not a file" in (await refusal(tmp_path)).message


async def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", Path("/proc/none")):
        store = SqliteStore(folder / "sessions.sqlite")
        with pytest.raises(ConfigurationError, match=f"--data-dir: {folder} cannot be made: .*: name a directory"):
            await store.start()
        await store.stop()


# Damage


async def test_what_is_no_database_is_refused(path: Path) -> None:
    put(path, b"a text that is longer than the header of a database " * 9)
    error = await refusal(path)
    assert error.reason == "STORE_CORRUPT"
    assert "restore it" in error.message


async def test_a_truncated_file_is_refused(path: Path) -> None:
    await fill(path, *(first(f"s{number}", KILOBYTES) for number in range(50)))
    whole = files(path.parent)[path.name]
    put(path, whole[: len(whole) // 2])
    assert (await refusal(path)).reason == "STORE_CORRUPT"


async def test_a_lost_table_is_refused(path: Path) -> None:
    await fill(path, first("s"))
    with raw(path) as file:
        file.execute("DROP TABLE sessions")
    async with opened(SqliteStore(path)) as store:
        with pytest.raises(UnavailableError) as caught:
            await store.read(keys(["s"]))
    assert caught.value.reason == "STORE_CORRUPT"


def sealed(id_: str, size: int = 4096, due: float | None = None) -> Write:
    """The write that opens a session whose record says what it should."""
    record = new_record(key(id_), SessionRequest("tiny"), created_at=1.0, seed=1, ttl=None, idle=None)
    record.body.state = random.Random(id_).randbytes(size)
    opening = first(id_, due=due)
    summary, body = encode_record(record, opening.revision)
    return opening._replace(summary=summary, body=body)


async def reading(store: Store, id_: str) -> str:
    """What is read of a session: its whole content, "none", or why not."""
    try:
        (found,) = await store.read(keys([id_]))
        return "none" if found is None else str(decode_record(key(id_), found))
    except TidegateError as error:
        return error.reason


def content(write: Write) -> str:
    return str(decode_record(write.key, entry(write)))


@pytest.mark.parametrize(
    "damage",
    [
        "body = zeroblob(length(body))",
        "body = substr(body, 1, 9)",
        "body = x''",
        "body = 'text'",
        "summary = zeroblob(length(summary))",
        "summary = x''",
        "summary = 7",
        "revision = zeroblob(16)",
        "revision = CAST(x'ff' AS TEXT)",
    ],
)
async def test_a_damaged_record_is_one_sessions_trouble(path: Path, store: Store, damage: str) -> None:
    damaged, whole = sealed("damaged", due=1.0), sealed("whole", due=1.0)
    await store.write([damaged, whole])
    with raw(path) as file:
        file.execute(f"UPDATE sessions SET {damage} WHERE id = 'damaged'")  # noqa: S608
    assert [await reading(store, id_) for id_ in ("damaged", "whole")] == ["STORE_CORRUPT", content(whole)]
    assert [id_ for id_, _ in await store.page("t", 9, "")] == ["damaged", "whole"]
    assert await all_due(store, 1.0) == ["damaged", "whole"]
    assert await store.write([after(whole)]) == [True]


@pytest.mark.parametrize("damage", ["id = x'ff'", "id = CAST(x'ff' AS TEXT)", "tenant = x'74'"])
async def test_a_damaged_key_keeps_no_session_from_coming_up_when_it_is_due(
    path: Path, store: Store, damage: str
) -> None:
    await store.write([sealed("damaged", due=0.0), sealed("whole", due=1.0)])
    with raw(path) as file:
        file.execute(f"UPDATE sessions SET {damage} WHERE id = 'damaged'")  # noqa: S608
    assert await store.due(1.0, 1) == []
    assert await store.due(1.0, 1) == keys(["whole"])


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE sessions",
        "DROP TABLE attachments",
        "ALTER TABLE sessions DROP COLUMN body",
        "CREATE TRIGGER no BEFORE UPDATE ON sessions BEGIN SELECT raise(ABORT, 'no'); END",
    ],
)
async def test_a_file_that_takes_no_steps_says_so_when_it_is_asked(path: Path, store: Store, damage: str) -> None:
    await store.ping()
    with raw(path) as file:
        file.execute(damage)
    with pytest.raises(UnavailableError):
        await store.ping()


async def test_damage_on_a_page_of_a_body_is_one_sessions_trouble(path: Path) -> None:
    """SQLite itself finds it: it refuses the row, and no other."""
    sessions = [sealed(f"s{number}", 100_000) for number in range(3)]
    await fill(path, *sessions)
    damaged, body = files(path.parent)[path.name], sessions[1].body
    assert body is not None
    at = damaged.index(body[50_000:50_016]) // PAGE_BYTES * PAGE_BYTES
    put(path, damaged[:at] + b"\xff" * 4 + damaged[at + 4 :])  # the number of the page that follows
    async with opened(SqliteStore(path)) as store:
        told = [await reading(store, write.key.id) for write in sessions]
        assert told == [content(sessions[0]), "STORE_CORRUPT", content(sessions[2])]
        # Its summary lies elsewhere.
        assert [decode_summary(key(id_), stored).id for id_, stored in await store.page("t", 9, "")] == [
            "s0",
            "s1",
            "s2",
        ]


async def test_a_damaged_attachment_is_told_as_such(path: Path, store: Store) -> None:
    record = decode_record(key("s"), entry(sealed("s")))
    await store.write([sealed("s")._replace(attachments={"kept": encode_checkpoint(key("s"), "kept", record)})])
    found = await store.read_attachment(key("s"), "kept")
    assert found is not None
    assert decode_checkpoint(key("s"), "kept", found).state == record.body.state
    with raw(path) as file:
        file.execute("UPDATE attachments SET content = CAST(zeroblob(length(content)) AS TEXT)")
    damaged = await store.read_attachment(key("s"), "kept")
    assert damaged is not None
    with pytest.raises(InternalError) as caught:
        decode_checkpoint(key("s"), "kept", damaged)
    assert caught.value.reason == "STORE_CORRUPT"


async def look(path: Path) -> list[str]:
    """What is read of each session."""
    async with opened(SqliteStore(path)) as store:
        return [await reading(store, f"s{number}") for number in range(20)]


@dataclasses.dataclass(frozen=True, repr=False)
class Sound:
    """A file with twenty sessions."""

    path: Path
    contents: list[str]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    path = tmp_path_factory.mktemp("sound") / "sessions.sqlite"
    writes = [sealed(f"s{number}", 100 + 300 * number, due=float(number)) for number in range(20)]
    asyncio.run(fill(path, *writes))
    return Sound(path, [content(write) for write in writes])


@given(at=st.floats(0, 1, exclude_max=True), flips=st.binary(min_size=1, max_size=64).filter(any))
def test_flipped_bytes_anywhere_are_never_served(sound: Sound, at: float, flips: bytes) -> None:
    """Nor do they end in an error that is not one of ours."""
    damage = bytearray(sound.path.read_bytes())
    start = int(at * len(damage))
    for offset, flip in enumerate(flips[: len(damage) - start]):
        damage[start + offset] ^= flip
    with tempfile.TemporaryDirectory(prefix="tidegate-") as directory:
        damaged = Path(directory) / "sessions.sqlite"
        put(damaged, damage)
        try:
            seen = asyncio.run(look(damaged))
        except TidegateError:
            return
    for whole, found in zip(sound.contents, seen, strict=True):
        assert found in {whole, "none", "STORE_CORRUPT", "STORE_AWAY"}


# Faults that pass


async def test_a_full_store_keeps_what_it_has_and_works_again_with_room(path: Path) -> None:
    store = SqliteStore(path, max_bytes=100 * PAGE_BYTES)
    async with opened(store):
        kept = first("kept", KILOBYTES, due=1.0)
        large = first("large", KILOBYTES * 60)
        assert await store.write([kept, large]) == [True, True]
        group = [after(kept, b"stepped"), first("more", KILOBYTES * 60)]
        for call in (store.write(group), store.ping()):
            with pytest.raises(UnavailableError) as caught:
                await call
            assert caught.value.reason == "STORE_FULL"
        assert await store.read(keys(["kept", "more"])) == [entry(kept), None]

        assert await store.delete(key("large"), large.revision)
        await store.ping()
        assert await store.write(group) == [True, True]


async def test_who_asks_whether_a_file_can_be_written_waits_for_no_lock(path: Path) -> None:
    async with opened(SqliteStore(path, busy_seconds=1000)) as store:
        await store.write([first("s")])
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(UnavailableError, match="locked"):
                await store.ping()
            assert await store.read(keys(["s"])) != [None]
            other.execute("ROLLBACK")
        await store.ping()
        with raw(path) as other:
            assert other.execute("SELECT count(*) FROM attachments").fetchone() == (0,)


async def test_a_locked_file_is_away_for_writers_until_it_is_let_go(path: Path, store: Store) -> None:
    opening = first("s", due=1.0)
    await store.write([opening])
    with raw(path) as file:
        file.execute("BEGIN IMMEDIATE")
        for call in (
            store.write([after(opening)]),
            store.delete(key("s"), opening.revision),
            store.postpone(key("s"), 2.0),
        ):
            with pytest.raises(UnavailableError) as caught:
                await call
            assert caught.value.reason == "STORE_AWAY"
            assert caught.value.retry_after is not None
        assert await store.read(keys(["s"])) == [entry(opening)]
        waiting = SqliteStore(path, busy_seconds=0.01)
        with pytest.raises(UnavailableError):
            await waiting.start()
        file.execute("ROLLBACK")
    async with opened(waiting):
        assert await waiting.write([after(opening)]) == [True]
    assert await all_due(store, 1.0) == ["s"]


async def test_a_file_that_was_moved_away_takes_no_writes_until_it_is_back(path: Path, store: Store) -> None:
    opening = first("s")
    await store.write([opening])
    away = path.parent.rename(path.parent.with_name("away"))
    for call in (store.write([after(opening)]), store.ping(), store.read(keys(["s"]))):
        with pytest.raises(UnavailableError) as caught:
            await call
        assert caught.value.reason == "STORE_AWAY"
    away.rename(path.parent)
    await store.ping()
    assert await store.write([after(opening)]) == [True]


async def test_a_file_that_was_put_in_its_place_is_served(tmp_path: Path, path: Path, store: Store) -> None:
    backup = tmp_path / "backup.sqlite"
    restored = first("restored")
    await fill(backup, restored)
    await store.write([first("lost")])
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    backup.rename(path)
    assert await store.read(keys(["lost", "restored"])) == [None, entry(restored)]


async def test_another_programs_file_in_its_place_is_not(path: Path, store: Store) -> None:
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    with raw(path) as file:
        file.execute("CREATE TABLE theirs (x)")
    with pytest.raises(UnavailableError) as caught:
        await store.ping()
    assert caught.value.reason == "STORE_AWAY"


async def test_a_format_that_changes_meanwhile_is_noticed(path: Path, store: Store) -> None:
    with raw(path) as file:
        file.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(UnavailableError) as caught:
        await store.ping()
    assert f"format {FORMAT + 1}" in str(caught.value)
    assert caught.value.message == "the store of sessions is away"


async def test_a_read_finds_the_write_whose_caller_gave_up(store: Store) -> None:
    opening = first("s", due=1.0)
    writing = asyncio.create_task(store.write([opening]))
    await asyncio.sleep(0)  # the write is on its way to the thread
    writing.cancel()
    assert await store.read(keys(["s"])) in ([entry(opening)], [None])


# Other processes


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, writer.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def stored(path: Path) -> int:
    """The number that the writer stored last."""
    async with opened(SqliteStore(path)) as store:
        (found,) = await store.read(keys(["s"]))
    assert found is not None
    number = int.from_bytes(found.revision)
    assert found.body == writer.content(number)
    return number


@pytest.mark.parametrize("num_lines", [1, 7, 40, 200])
async def test_what_a_killed_process_acknowledged_is_stored(path: Path, num_lines: int) -> None:
    with started(path) as process:
        assert process.stdout is not None
        for _ in range(num_lines):
            process.stdout.readline()
        process.kill()
        acknowledged = num_lines + len(process.stdout.readlines())
    # The last one may have been stored and not told.
    assert acknowledged <= await stored(path) <= acknowledged + 1


async def test_a_limit_on_the_files_size_loses_nothing_and_passes(path: Path) -> None:
    with started(path, 2_000_000) as process:
        assert process.stdout is not None
        *told, reason, last = process.stdout.read().split()
    assert process.returncode == 0
    assert reason == "STORE_FULL"
    assert told == [str(number) for number in range(1, len(told) + 1)]
    assert told
    assert int(last) == len(told) + 1 == await stored(path)
