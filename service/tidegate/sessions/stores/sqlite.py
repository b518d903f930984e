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
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from tidegate.errors import ConfigurationError, UnavailableError
from tidegate.sessions.stores import sqlite_file
from tidegate.sessions.stores.sqlite_file import Checkpointer, FileSettings, transaction
from tidegate.sessions.stores.store import Entry, Write

T = TypeVar("T")

READ = "SELECT revision, checksum, record FROM sessions WHERE id = ?"
READ_ATTACHMENT = "SELECT content, checksum FROM attachments WHERE id = ? AND name = ?"
DUE = "SELECT id FROM sessions WHERE due <= ? ORDER BY due, id LIMIT ?"
# Text compares as UTF-8 bytes, whose order is that of code points.
PAGE = "SELECT id, revision, checksum, record FROM sessions WHERE is_listed AND id > ? ORDER BY id LIMIT ?"

INSERT = """INSERT INTO sessions (revision, checksum, record, is_listed, due, id) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO NOTHING"""
STEP = "UPDATE sessions SET revision = ?, checksum = ?, record = ? WHERE id = ? AND revision = ? AND is_listed"
UPDATE = """UPDATE sessions SET revision = ?, checksum = ?, record = ?, is_listed = ?
    WHERE id = ? AND revision = ?"""
POSTPONE = "UPDATE sessions SET due = ? WHERE id = ?"
DELETE = "DELETE FROM sessions WHERE id = ? AND revision = ?"

ATTACH = "INSERT OR REPLACE INTO attachments (id, name, checksum, content) VALUES (?, ?, ?, ?)"
DETACH = "DELETE FROM attachments WHERE id = ? AND name = ?"
DETACH_ALL = "DELETE FROM attachments WHERE id = ?"


class SqliteStore:
    """Durable sessions in a file that is made where there is none.

    Args:
        path: The file.
        synchronous: ``normal``: what was written survives the death of the process. ``full``: and of the power.
        busy_seconds: How long a call waits for other processes before it raises ``STORE_AWAY``.
        max_bytes: How large the file may grow; beyond it, writes raise ``STORE_FULL``. None: as large as the disk.
    """

    def __init__(
        self,
        path: Path,
        synchronous: Literal["normal", "full"] = "normal",
        *,
        busy_seconds: float = 2.0,
        max_bytes: int | None = None,
    ) -> None:
        self._settings = FileSettings(path, synchronous, busy_seconds, max_bytes)
        # Threads begin with the first call and end with this object.
        self._thread = ThreadPoolExecutor(1, "tidegate-sqlite")
        self._checkpointer = Checkpointer(self._settings)
        # What follows belongs to the thread.
        self._is_started = False
        self._is_full = False
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    async def start(self) -> None:
        await self._in_thread(self._open)

    async def stop(self) -> None:
        await self._in_thread(self._close)

    async def ping(self) -> None:
        await self._ask(self._try_out)

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        return await self._ask(lambda connection: [_read(connection, id_) for id_ in ids])

    async def read_attachment(self, id: str, name: str) -> bytes | None:  # noqa: A002
        return await self._ask(lambda connection: _read_attachment(connection, id, name))

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        return await self._ask(lambda connection: self._write(connection, writes))

    async def delete(self, id: str, expected: bytes) -> bool:  # noqa: A002
        return await self._ask(lambda connection: _delete(connection, id, expected))

    async def due(self, now: float, limit: int) -> list[str]:
        return await self._ask(lambda connection: [id_ for (id_,) in connection.execute(DUE, (now, limit))])

    async def postpone(self, id: str, at: float | None) -> None:  # noqa: A002
        await self._ask(lambda connection: _changes(connection, POSTPONE, (at, id)))

    async def page(self, limit: int, after: str) -> list[tuple[str, Entry]]:
        return await self._ask(lambda connection: _page(connection, limit, after))

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
            found = sqlite_file.unavailable(error)
            self._is_full = self._is_full or found.reason == "STORE_FULL"
            raise found from error

    def _ready(self) -> sqlite3.Connection:
        """Return the connection, a new one after an error or when the file was replaced: to write on into a file that
        was moved away would acknowledge what nobody will find.
        """
        if not self._is_started:
            raise UnavailableError("the session store is not open", reason="STORE_AWAY")
        identity = _identity(self._settings.path)
        if identity != self._identity:
            self._drop()
        if self._connection is None:
            try:
                self._connection = sqlite_file.reopen_file(self._settings)
            except ConfigurationError as error:
                raise UnavailableError(
                    "the session store's file was replaced by one of another kind", reason="STORE_AWAY", retry_after=1.0
                ) from error
            self._identity = identity
        return self._connection

    def _try_out(self, connection: sqlite3.Connection) -> None:
        sqlite_file.check_format(connection)
        if self._is_full:
            sqlite_file.try_to_grow(connection)
            self._is_full = False

    def _write(self, connection: sqlite3.Connection, writes: Sequence[Write]) -> list[bool]:
        made = _step_all(connection, writes) or _put_each(connection, writes)
        self._is_full = False
        self._checkpointer.count(writes)
        return made


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  (a microsecond less than Path.stat, at each call)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _checksum(content: bytes, revision: bytes = b"") -> bytes:
    """SQLite notices a damaged tree, not a damaged record. CRC-32 takes a microsecond for a record of 4 KB.

    Bytes, because an integer's length in a row varies with its value (`sqlite_file.SCHEMA`).
    """
    return zlib.crc32(content, zlib.crc32(revision)).to_bytes(4)


def _checked(content: object, checksum: bytes, revision: object = b"") -> bytes:
    # Of a damaged row, even the types may be others.
    if not isinstance(content, bytes) or not isinstance(revision, bytes) or _checksum(content, revision) != checksum:
        raise UnavailableError("a record in the session store's file is damaged", reason="STORE_CORRUPT")
    return content


def _entry(revision: bytes, checksum: bytes, record: bytes) -> Entry:
    return Entry(revision, _checked(record, checksum, revision))


def _read(connection: sqlite3.Connection, id_: str) -> Entry | None:
    row = connection.execute(READ, (id_,)).fetchone()
    return _entry(*row) if row else None


def _read_attachment(connection: sqlite3.Connection, id_: str, name: str) -> bytes | None:
    row = connection.execute(READ_ATTACHMENT, (id_, name)).fetchone()
    return _checked(*row) if row else None


def _page(connection: sqlite3.Connection, limit: int, after: str) -> list[tuple[str, Entry]]:
    # All rows first: the traceback of a damaged one would hold the query open, and with it the log.
    rows = connection.execute(PAGE, (after, limit)).fetchall()
    return [(id_, _entry(*row)) for id_, *row in rows]


def _delete(connection: sqlite3.Connection, id_: str, expected: bytes) -> bool:
    with transaction(connection):
        is_made = _changes(connection, DELETE, (id_, expected))
        if is_made:
            connection.execute(DETACH_ALL, (id_,))
    return is_made


class _FellShortError(Exception):
    """Some write of a group was not made."""


def _step_all(connection: sqlite3.Connection, writes: Sequence[Write]) -> list[bool] | None:
    """Make all writes at once, if they are steps and their compares succeed; else none, and return None.

    The usual tick. It touches no index, and one call of many rows costs a third less than a call for each.
    """
    if not all(_is_step(write) for write in writes):
        return None
    rows = [(*_columns(write), write.id, write.expected) for write in writes]
    try:
        with transaction(connection):
            if connection.executemany(STEP, rows).rowcount != len(rows):
                raise _FellShortError
    except _FellShortError:
        return None
    return [True] * len(rows)


def _is_step(write: Write) -> bool:
    return write.expected is not None and write.due is None and write.is_listed and not write.attachments


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
    return _changes(connection, INSERT, (*_columns(write), write.is_listed, due, write.id))


def _update(connection: sqlite3.Connection, write: Write) -> bool:
    is_made = _changes(connection, UPDATE, (*_columns(write), write.is_listed, write.id, write.expected))
    if is_made and write.due is not None:
        connection.execute(POSTPONE, (write.due.at, write.id))
    return is_made


def _columns(write: Write) -> tuple[bytes, bytes, bytes]:
    return write.revision, _checksum(write.record, write.revision), write.record


def _attach(connection: sqlite3.Connection, write: Write) -> None:
    for name, content in write.attachments.items():
        if content is None:
            connection.execute(DETACH, (write.id, name))
        else:
            connection.execute(ATTACH, (write.id, name, _checksum(content), content))


def _changes(connection: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> bool:
    return connection.execute(statement, values).rowcount == 1
