"""A SQLite file of format 1 → one of the format that is served, in one transaction, after a copy of it was made.

Whatever ends in the middle, the process or the power, leaves the file as it was; the next start begins again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tidegate.sessions.format1 import OLD_FORMAT, Migrated, damaged, migrate_checkpoint, migrate_record
from tidegate.sessions.ids import DEFAULT_TENANT

log = logging.getLogger(__name__)

_BATCH = 1000
_COPY_PAGES = 4096

# Out of the old tables' indexes alone, so that a damaged row holds up no other.
_IDS = "SELECT id FROM old_sessions WHERE id > ? ORDER BY id LIMIT ?"
_NAMES = "SELECT id, name FROM old_attachments WHERE (id, name) > (?, ?) ORDER BY id, name LIMIT ?"
_READ = """SELECT CAST(revision AS BLOB), CAST(checksum AS BLOB), CAST(record AS BLOB), is_listed, due
    FROM old_sessions WHERE id = ?"""
_READ_ATTACHMENT = """SELECT CAST(checksum AS BLOB), CAST(content AS BLOB)
    FROM old_attachments WHERE id = ? AND name = ?"""
_INSERT = "INSERT INTO sessions (tenant, id, revision, summary, body, is_listed, due) VALUES (?, ?, ?, ?, ?, ?, ?)"
_ATTACH = "INSERT INTO attachments (tenant, id, name, content) VALUES (?, ?, ?, ?)"

_PUT_ASIDE = (
    "DROP INDEX listed",
    "DROP INDEX by_due",
    "ALTER TABLE sessions RENAME TO old_sessions",
    "ALTER TABLE attachments RENAME TO old_attachments",
)
_DROP = ("DROP TABLE old_sessions", "DROP TABLE old_attachments")


class Migration(NamedTuple):
    """What was migrated; damaged sessions stay, and stay damaged."""

    num_sessions: int = 0
    num_damaged: int = 0
    backup: Path | None = None


Progress = Callable[[int, int], None]
"""Is told how many sessions of how many are done."""


def log_progress(num_done: int, total: int) -> None:
    """Tell the log, every now and then."""
    if num_done % (10 * _BATCH) == 0 or num_done == total:
        log.warning("%d of %d sessions are migrated", num_done, total)


def migrate(connection: sqlite3.Connection, path: Path, schema: tuple[str, ...], progress: Progress) -> Migration:
    """Migrate the file that the connection has open; nothing where it is not of the old format.

    Args:
        connection: Without a transaction; nothing of it is set up but how long it waits for others.
        path: Where the file is; the copy is put beside it.
        schema: Of the format that is served.
        progress: Is told now and then.

    Raises:
        sqlite3.Error, OSError: It could not be done, and nothing was changed.
    """
    # The log goes to the disk with the commit, whatever the server asks for later.
    connection.execute("PRAGMA synchronous = full")
    connection.execute("BEGIN IMMEDIATE")  # nobody writes meanwhile, and of two servers that start one is first
    try:
        if connection.execute("PRAGMA user_version").fetchone() != (OLD_FORMAT,):
            connection.execute("ROLLBACK")
            return Migration()
        backup = _back_up(path)
        log.warning("session store %s: of format %d, is migrated; copied to %s", path, OLD_FORMAT, backup)
        for statement in (*_PUT_ASIDE, *schema):
            connection.execute(statement)
        num_sessions, num_damaged = _move_sessions(connection, progress)
        _move_attachments(connection)
        for statement in _DROP:
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    log.warning("session store %s: %d sessions migrated, %d of them damaged", path, num_sessions, num_damaged)
    return Migration(num_sessions, num_damaged, backup)


def _back_up(path: Path) -> Path:
    """Copy the file, whole and on the disk, before anything of it is changed; nobody writes to it meanwhile."""
    backup = path.with_name(f"{path.name}.format-{OLD_FORMAT}.bak")
    part = backup.with_name(f"{backup.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            source.backup(copy, pages=_COPY_PAGES)
            # One file: without a log of its own beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
        _sync(part)
        part.replace(backup)
    except BaseException:
        part.unlink(missing_ok=True)  # on a full disk it takes the room of everything else
        raise
    _sync(backup.parent)
    return backup


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_sessions(connection: sqlite3.Connection, progress: Progress) -> tuple[int, int]:
    (total,) = connection.execute("SELECT count(*) FROM old_sessions").fetchone()
    num_sessions = num_damaged = 0
    for (id_,) in _rows(connection, _IDS, ("",)):
        revision, is_listed, due, migrated = _migrated(connection, id_)
        row = (DEFAULT_TENANT, id_, revision, migrated.summary, migrated.body, is_listed, due)
        connection.execute(_INSERT, row)
        num_sessions += 1
        num_damaged += migrated.is_damaged
        if num_sessions % _BATCH == 0:
            progress(num_sessions, total)
    progress(num_sessions, total)
    return num_sessions, num_damaged


def _migrated(connection: sqlite3.Connection, id_: str) -> tuple[bytes, bool, float | None, Migrated]:
    try:
        revision, checksum, content, is_listed, due = connection.execute(_READ, (id_,)).fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return b"", True, None, damaged(b"")
    due = due if isinstance(due, float) else None
    if _checksum(content, revision) != checksum:
        return revision or b"", bool(is_listed), due, damaged(content or b"")
    return revision, bool(is_listed), due, migrate_record(id_, revision, content)


def _move_attachments(connection: sqlite3.Connection) -> None:
    for id_, name in _rows(connection, _NAMES, ("", "")):
        checksum, content = connection.execute(_READ_ATTACHMENT, (id_, name)).fetchone()
        is_whole = _checksum(content, b"") == checksum
        connection.execute(
            _ATTACH, (DEFAULT_TENANT, id_, name, migrate_checkpoint(id_, name, content) if is_whole else b"")
        )


def _checksum(content: bytes, revision: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(revision)).to_bytes(4)


def _rows(connection: sqlite3.Connection, statement: str, after: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield an index's rows in order, a batch in memory at a time."""
    while rows := connection.execute(statement, (*after, _BATCH)).fetchall():
        yield from rows
        after = rows[-1]
