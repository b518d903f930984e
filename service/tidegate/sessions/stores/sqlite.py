"""Durable sessions in one SQLite file, on a local file system, for any number of processes of one host.

A thread of its own does all reading and writing, in the order of the calls: a read that follows a write, even one whose
caller gave up, finds what that write did. A second thread moves the log into the file meanwhile (`sqlite_file`), which
SQLite would otherwise do within some unlucky commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from tidegate.api import SessionKey
from tidegate.clock import Clock
from tidegate.errors import ConfigurationError
from tidegate.sessions.stores import sqlite_file
from tidegate.sessions.stores.sqlite_file import Checkpointer, FileSettings, transaction
from tidegate.sessions.stores.store import Entry, Stored, Write, are_steps, trouble

T = TypeVar("T")

# Casts, because of a damaged row even the types may be others: whatever is there comes as bytes.
READ = """SELECT CAST(revision AS BLOB), CAST(summary AS BLOB), CAST(body AS BLOB) FROM sessions
    WHERE tenant = ? AND id = ?"""
READ_SUMMARY = "SELECT CAST(revision AS BLOB), CAST(summary AS BLOB) FROM sessions WHERE tenant = ? AND id = ?"
READ_ATTACHMENT = "SELECT CAST(content AS BLOB) FROM attachments WHERE tenant = ? AND id = ? AND name = ?"
DUE = """SELECT rowid, CAST(tenant AS BLOB), CAST(id AS BLOB), typeof(tenant) = 'text' AND typeof(id) = 'text'
    FROM sessions WHERE due <= ? ORDER BY due, tenant, id LIMIT ?"""
FORGET_DUE = "UPDATE sessions SET due = NULL WHERE rowid = ?"
# Text compares as UTF-8 bytes, whose order is that of code points.
PAGE = "SELECT CAST(id AS BLOB) FROM sessions WHERE is_listed AND tenant = ? AND id > ? ORDER BY id LIMIT ?"

INSERT = """INSERT INTO sessions (revision, summary, body, is_listed, due, tenant, id) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, id) DO NOTHING"""
STEP = """UPDATE sessions SET revision = ?, summary = ?, body = ?
    WHERE tenant = ? AND id = ? AND revision = ? AND is_listed"""
UPDATE = """UPDATE sessions SET revision = ?, summary = ?, body = coalesce(?, body), is_listed = ?
    WHERE tenant = ? AND id = ? AND revision = ?"""
POSTPONE = "UPDATE sessions SET due = ? WHERE tenant = ? AND id = ?"
DELETE = "DELETE FROM sessions WHERE tenant = ? AND id = ? AND revision = ?"

ATTACH = "INSERT OR REPLACE INTO attachments (tenant, id, name, content) VALUES (?, ?, ?, ?)"
DETACH = "DELETE FROM attachments WHERE tenant = ? AND id = ? AND name = ?"
DETACH_ALL = "DELETE FROM attachments WHERE tenant = ? AND id = ?"

_DAMAGED = b""
"""What stands for what cannot be read: no check passes it."""


class SqliteStore:
    """Durable sessions in a file that is made where there is none.

    Args:
        path: The file.
        synchronous: ``normal``: what was written survives the death of the process. ``full``: and of the power.
        busy_seconds: How long a call waits for other processes before it raises ``STORE_AWAY``.
        max_bytes: How large the file may grow; beyond it, writes raise ``STORE_FULL``. None: as large as the disk.
        clock: SQLite has none of its own.
    """

    def __init__(
        self,
        path: Path,
        synchronous: Literal["normal", "full"] = "normal",
        *,
        busy_seconds: float = 2.0,
        max_bytes: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._wall = (clock or Clock()).wall
        self._settings = FileSettings(path, synchronous, busy_seconds, max_bytes)
        # Threads begin with the first call and end with this object.
        self._thread = ThreadPoolExecutor(1, "tidegate-sqlite")
        self._checkpointer = Checkpointer(self._settings)
        # What follows belongs to the thread.
        self._is_started = False
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    async def start(self) -> None:
        await self._in_thread(self._open)

    async def stop(self) -> None:
        await self._in_thread(self._close)

    async def ping(self) -> None:
        await self._ask(self._try_out)

    async def time(self) -> float:
        return self._wall()

    async def read(self, keys: Sequence[SessionKey]) -> list[Entry | None]:
        rows = await self._ask(lambda connection: [_read(connection, READ, key) for key in keys])
        return [None if row is None else Entry(*row) for row in rows]

    async def read_summaries(self, keys: Sequence[SessionKey]) -> list[Stored | None]:
        rows = await self._ask(lambda connection: [_read(connection, READ_SUMMARY, key) for key in keys])
        return [None if row is None else Stored(*row) for row in rows]

    async def read_attachment(self, key: SessionKey, name: str) -> bytes | None:
        row = await self._ask(lambda connection: _read(connection, READ_ATTACHMENT, (*key, name)))
        return None if row is None else row[0]

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        return await self._ask(lambda connection: self._write(connection, writes))

    async def delete(self, key: SessionKey, expected: bytes) -> bool:
        return await self._ask(lambda connection: _delete(connection, key, expected))

    async def due(self, now: float, limit: int) -> list[SessionKey]:
        return await self._ask(lambda connection: _due(connection, now, limit))

    async def postpone(self, key: SessionKey, at: float | None) -> None:
        await self._ask(lambda connection: _changes(connection, POSTPONE, (at, *key)))

    async def page(self, tenant: str, limit: int, after: str) -> list[tuple[str, Stored]]:
        return await self._ask(lambda connection: _page(connection, tenant, limit, after))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _ask(self, job: Callable[[sqlite3.Connection], T]) -> T:
        return await self._in_thread(lambda: self._try(job))

    # From here on: in the thread.

    def _open(self) -> None:
        self._close()
        self._connection = sqlite_file.open_file(self._settings)
        self._identity = _identity(self._settings.path)
        self._is_started = True

    def _close(self) -> None:
        self._is_started = False
        self._checkpointer.wait()
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            # The last one to close the file moves the log into it; where that fails, the next one to open it will.
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _try(self, job: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return job(self._ready())
        except sqlite3.ProgrammingError:
            raise  # a fault of ours
        except sqlite_file.FAULTS as error:
            if not sqlite_file.is_passing(error):  # a new connection next time
                self._drop()
            raise sqlite_file.unavailable(error) from error

    def _ready(self) -> sqlite3.Connection:
        """Return the connection, a new one after an error or when the file was replaced: to write on into a file that
        was moved away would acknowledge what nobody will find.
        """
        if not self._is_started:
            raise trouble("STORE_AWAY", "the file is not open")
        identity = _identity(self._settings.path)
        if identity != self._identity:
            self._drop()
        if self._connection is None:
            try:
                self._connection = sqlite_file.reopen_file(self._settings)
            except ConfigurationError as error:
                raise trouble("STORE_AWAY", "the file was replaced by one of another kind") from error
            self._identity = identity
        return self._connection

    def _try_out(self, connection: sqlite3.Connection) -> None:
        sqlite_file.check_format(connection)
        sqlite_file.try_to_write(connection, self._settings)

    def _write(self, connection: sqlite3.Connection, writes: Sequence[Write]) -> list[bool]:
        made = _step_all(connection, writes) or _put_each(connection, writes)
        self._checkpointer.count(writes)
        return made


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  (a microsecond less than Path.stat, at each call)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _read(connection: sqlite3.Connection, statement: str, key: tuple[str, ...]) -> tuple[bytes, ...] | None:
    """Return a row's columns, as bytes whatever they are; damage where only this row lies is this row's only."""
    try:
        row = connection.execute(statement, key).fetchone()
    except sqlite_file.FAULTS as error:
        if not sqlite_file.is_damage(error):
            raise
        return (_DAMAGED,) * statement.partition(" FROM ")[0].count("CAST")
    return None if row is None else tuple(_DAMAGED if column is None else column for column in row)


def _page(connection: sqlite3.Connection, tenant: str, limit: int, after: str) -> list[tuple[str, Stored]]:
    # The ids come out of the index alone, and each row by itself: a damaged one keeps no other from being listed.
    ids = [id_.decode(errors="replace") for (id_,) in connection.execute(PAGE, (tenant, after, limit)).fetchall()]
    rows = [_read(connection, READ_SUMMARY, (tenant, id_)) for id_ in ids]
    return [
        (id_, Stored(_DAMAGED, _DAMAGED) if row is None else Stored(*row)) for id_, row in zip(ids, rows, strict=True)
    ]


def _due(connection: sqlite3.Connection, now: float, limit: int) -> list[SessionKey]:
    found = []
    for row, tenant, id_, is_text in connection.execute(DUE, (now, limit)).fetchall():
        key = SessionKey(tenant.decode(errors="replace"), id_.decode(errors="replace"))
        if is_text and (key.tenant.encode(), key.id.encode()) == (tenant, id_):
            found.append(key)
        else:  # a damaged key, under which nothing is found: it would come up first for ever
            connection.execute(FORGET_DUE, (row,))
    return found


def _delete(connection: sqlite3.Connection, key: SessionKey, expected: bytes) -> bool:
    with transaction(connection):
        is_made = _changes(connection, DELETE, (*key, expected))
        if is_made:
            connection.execute(DETACH_ALL, key)
    return is_made


class _FellShortError(Exception):
    """Some write of a group was not made."""


def _step_all(connection: sqlite3.Connection, writes: Sequence[Write]) -> list[bool] | None:
    """Make all writes at once, if they are steps and their compares succeed; else none, and return None.

    The usual tick. It touches no index, and one call of many rows costs a third less than a call for each.
    """
    if not are_steps(writes):
        return None
    rows = [
        (revision, summary, body, tenant, id_, expected)
        for (tenant, id_), expected, revision, summary, body, *_ in writes
    ]
    try:
        with transaction(connection):
            if connection.executemany(STEP, rows).rowcount != len(rows):
                raise _FellShortError
    except _FellShortError:
        return None
    return [True] * len(rows)


def _put_each(connection: sqlite3.Connection, writes: Sequence[Write]) -> list[bool]:
    with transaction(connection):
        return [_put(connection, write) for write in writes]


def _put(connection: sqlite3.Connection, write: Write) -> bool:
    is_made = _insert(connection, write) if write.expected is None else _update(connection, write)
    if is_made:
        _attach(connection, write)
    return is_made


def _insert(connection: sqlite3.Connection, write: Write) -> bool:
    due = write.due.at if write.due else None
    row = (write.revision, write.summary, write.body or b"", write.is_listed, due, *write.key)
    return _changes(connection, INSERT, row)


def _update(connection: sqlite3.Connection, write: Write) -> bool:
    row = (write.revision, write.summary, write.body, write.is_listed, *write.key, write.expected)
    is_made = _changes(connection, UPDATE, row)
    if is_made and write.due is not None:
        connection.execute(POSTPONE, (write.due.at, *write.key))
    return is_made


def _attach(connection: sqlite3.Connection, write: Write) -> None:
    for name, content in write.attachments.items():
        if content is None:
            connection.execute(DETACH, (*write.key, name))
        else:
            connection.execute(ATTACH, (*write.key, name, content))


def _changes(connection: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> bool:
    return connection.execute(statement, values).rowcount == 1
