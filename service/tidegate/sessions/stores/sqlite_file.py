"""A SQLite file of ours: how it is made, recognized and opened, and what its errors mean.

Knows the schema and the settings of a connection, and why they are so; what is read and written is in `sqlite`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from tidegate.errors import ConfigurationError, TidegateError, UnavailableError
from tidegate.sessions.stores.sqlite_migration import Migration, Progress, log_progress, migrate
from tidegate.sessions.stores.store import FORMAT, Write, trouble

APPLICATION_ID = int.from_bytes(b"tide")
"""In the file's header, so that nobody's else file is taken for ours (and `file` can tell)."""

PAGE_BYTES = 4096

BACKSTOP_PAGES = 32_768
"""Length of the log, 128 MiB, at which a commit itself stops to move it into the file, should nobody have done so."""

CHECKPOINT_BYTES = 64 * 2**20
"""Written since the last checkpoint: often enough for a short log, seldom enough that a busy session's record, which
the log holds once a step, is moved once for many steps.
"""

SCHEMA = (
    # A rowid table with an index of keys: rows of kilobytes in the tree of keys itself (WITHOUT ROWID) would leave four
    # to a page, and a million of them ten pages deep. The body stands last: what is long lies on pages of its own,
    # which nobody reads who asks for the summary, and a row of unchanged length is overwritten where it is.
    """CREATE TABLE sessions (
        tenant TEXT NOT NULL,
        id TEXT NOT NULL,
        revision BLOB NOT NULL,
        is_listed INTEGER NOT NULL,
        due REAL,
        summary BLOB NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (tenant, id)
    )""",
    # Steps change no column of these two. Ended sessions are not in the first, so a page costs its length.
    "CREATE INDEX listed ON sessions (tenant, id) WHERE is_listed",
    "CREATE INDEX by_due ON sessions (due, tenant, id) WHERE due IS NOT NULL",
    """CREATE TABLE attachments (
        tenant TEXT NOT NULL,
        id TEXT NOT NULL,
        name TEXT NOT NULL,
        content BLOB NOT NULL,
        UNIQUE (tenant, id, name)
    )""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)

FAULTS = (sqlite3.Error, UnicodeDecodeError)
"""What a file in trouble raises: the second where the text of an error, or of a row, holds damaged bytes."""

_TRIAL_MILLISECONDS = 250
_TRIAL = (
    """INSERT OR REPLACE INTO sessions (tenant, id, revision, is_listed, due, summary, body)
        VALUES ('', 'trial', x'00', 0, NULL, x'', zeroblob(262144))""",
    "UPDATE sessions SET revision = x'01' WHERE tenant = ''",
    "DELETE FROM sessions WHERE tenant = ''",
    "DELETE FROM attachments WHERE tenant = ''",
)

_REASONS = {
    sqlite3.SQLITE_FULL: "STORE_FULL",
    sqlite3.SQLITE_CORRUPT: "STORE_CORRUPT",
    sqlite3.SQLITE_NOTADB: "STORE_CORRUPT",
    sqlite3.SQLITE_ERROR: "STORE_CORRUPT",  # "no such table": somebody changed the schema
}
"""By primary result code, https://sqlite.org/rescode.html."""

_CANNOT_WRITE = frozenset({sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})
"""Over a quota or a limit on file sizes: SQLite says FULL only for ENOSPC."""

_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL})
_ELSEWHERE = "name a directory that can be written by --data-dir, or another store by --store"
_DAMAGED = "damaged: restore it from a backup, or move it away (with -wal and -shm) to start with no durable sessions"


@dataclasses.dataclass(frozen=True, slots=True)
class FileSettings:
    """How to open the file.

    Attributes:
        path: The file; ``-wal`` and ``-shm`` lie beside it while it is open.
        synchronous: ``normal`` syncs when the log is moved into the file: commits survive the death of the process,
            and the last of them may be lost, none half, when power goes. ``full`` syncs at each commit.
        busy_seconds: How long to wait for another process's transaction.
        max_bytes: The file's largest size; None: SQLite's own, terabytes.
    """

    path: Path
    synchronous: Literal["normal", "full"]
    busy_seconds: float
    max_bytes: int | None


def open_file(settings: FileSettings) -> sqlite3.Connection:
    """Open the file, after making it where there is none, or migrating it where it is of an older format.

    Raises:
        ConfigurationError: It can never work.
        UnavailableError: It is locked, or full.
    """
    _make_file(settings.path)
    try:
        migrate_file(settings)
        connection = reopen_file(settings)
        with transaction(connection):  # it can be written to
            return connection
    except FAULTS as error:
        raise _at_start(error, settings.path) from error


def migrate_file(settings: FileSettings, progress: Progress = log_progress) -> Migration:
    """Bring a file of ours to the format that is served, where it is of an older one; keep a copy of what it was.

    Raises:
        ConfigurationError, UnavailableError: It could not be done; the file is as it was.
    """
    try:
        with contextlib.closing(_connect(settings)) as connection:
            if _is_empty(connection) or _pragma(connection, "application_id") != APPLICATION_ID:
                return Migration()
            return migrate(connection, settings.path, SCHEMA, progress)
    except OSError as error:
        raise ConfigurationError(
            f"session store {settings.path}: cannot be copied before it is migrated: {error.strerror}"
        ) from None
    except FAULTS as error:
        raise _at_start(error, settings.path) from error


def reopen_file(settings: FileSettings) -> sqlite3.Connection:
    """Open the file that must exist: to make another, empty one under a running server would lose all sessions.

    Raises:
        ConfigurationError: It is not ours, or of another format.
        sqlite3.Error: It cannot be opened.
    """
    connection = _connect(settings)
    try:
        _recognize(connection, settings.path)
        _set_up(connection, settings)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(settings: FileSettings) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{settings.path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=settings.busy_seconds,
        isolation_level=None,  # transactions begin and end where this package says so
    )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold the write lock; commit at the end, or nothing after an error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back after some errors
            connection.execute("ROLLBACK")
        raise


def check_format(connection: sqlite3.Connection) -> None:
    """Make sure that no newer server changed the file's format under this one.

    Raises:
        UnavailableError: One did.
        sqlite3.Error: The file cannot be read.
    """
    if (found := _pragma(connection, "user_version")) != FORMAT:
        raise trouble("STORE_AWAY", f"the file is of format {found} now, this server's is {FORMAT}")


def try_to_write(connection: sqlite3.Connection, settings: FileSettings) -> None:
    """Write something of a tick's size and remove it; no tenant's name is empty.

    It waits for nobody for long: who holds the file locked keeps everybody from writing.

    Raises:
        sqlite3.Error: It cannot be written.
    """
    connection.execute(f"PRAGMA busy_timeout = {_TRIAL_MILLISECONDS}")
    try:
        for statement in _TRIAL:
            connection.execute(statement)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {round(settings.busy_seconds * 1000)}")


class Checkpointer:
    """Moves what the log holds into the file (a *checkpoint*), in a thread beside the writer.

    Within a commit, as SQLite does it unasked, it stops all steps for some milliseconds, or for a tenth of a second
    where it is done rarely.
    """

    def __init__(self, settings: FileSettings) -> None:
        # While it waits for others' reads and writes it keeps everybody from writing: not for long, then.
        self._settings = dataclasses.replace(settings, busy_seconds=0.05)
        self._thread = ThreadPoolExecutor(1, "tidegate-sqlite-checkpoint")
        self._running: Future[None] | None = None
        self._num_bytes = 0

    def count(self, writes: Sequence[Write]) -> None:
        """Note what was written; begin a checkpoint when it is due."""
        # A record of n bytes changes the page of its row and those of its length.
        self._num_bytes += sum(len(write.body or b"") + PAGE_BYTES for write in writes)
        if self._num_bytes >= CHECKPOINT_BYTES and (self._running is None or self._running.done()):
            self._num_bytes = 0
            self._running = self._thread.submit(self._checkpoint)

    def wait(self) -> None:
        """Return when none is under way."""
        if self._running is not None:
            self._running.result()

    def _checkpoint(self) -> None:
        # The log keeps everything, whatever goes wrong here; the writer meets the same trouble and reports it.
        with (
            contextlib.suppress(*FAULTS, ConfigurationError),
            contextlib.closing(reopen_file(self._settings)) as connection,
        ):
            # Writers go on meanwhile and add to the log; each pass has less to do than the one before. With the last
            # they wait, and start the log from its beginning.
            lengths = [_checkpoint(connection, "PASSIVE") for _ in range(3)]
            if lengths[-1] - lengths[-2] < BACKSTOP_PAGES // 32:
                _checkpoint(connection, "RESTART")


def _checkpoint(connection: sqlite3.Connection, mode: str) -> int:
    """Move the log into the file; return how many pages it holds."""
    _, length, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return int(length)


def unavailable(error: Exception) -> UnavailableError:
    """What an error of a running store means to a caller."""
    code, name = _code(error), getattr(error, "sqlite_errorname", type(error).__name__)
    reason = "STORE_FULL" if code in _CANNOT_WRITE else _REASONS.get(code & 0xFF, "STORE_AWAY")
    is_locked = code & 0xFF == sqlite3.SQLITE_BUSY
    said = "another process holds the file locked" if is_locked else str(error)
    return trouble(reason, f"SQLite: {said} ({name})")


def is_passing(error: Exception) -> bool:
    """Whether the connection is as good as before; after any other error a new one is to be made."""
    return _code(error) & 0xFF in _PASSING


def is_damage(error: Exception) -> bool:
    """Whether what was asked for lies on damaged pages; others may be whole."""
    return _code(error) & 0xFF == sqlite3.SQLITE_CORRUPT


def _code(error: Exception) -> int:
    """SQLite's result code. Python's own errors have none: they come of text that is no text."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code


def _make_file(path: Path) -> None:
    """Make an empty file that only its owner can read; SQLite gives -wal and -shm the same permissions."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--data-dir: {path.parent} cannot be made: {error.strerror}: {_ELSEWHERE}") from None
    try:
        # Only a file that did not exist may be closed here: POSIX drops a process's locks on a file, SQLite's too,
        # when any descriptor of it is closed.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not path.is_file():
            raise ConfigurationError(f"session store {path}: not a file") from None
    except OSError as error:
        raise ConfigurationError(f"session store {path}: {error.strerror}: {_ELSEWHERE}") from None


def _recognize(connection: sqlite3.Connection, path: Path) -> None:
    """Make sure that the file is ours, or nobody's yet, before anything of it is changed."""
    if _is_empty(connection):
        return
    if (found := _pragma(connection, "application_id")) != APPLICATION_ID:
        raise ConfigurationError(
            f"session store {path}: a SQLite file of another program (application id {found:#x}, not "
            f"{APPLICATION_ID:#x}); name another file"
        )
    if (found := _pragma(connection, "user_version")) != FORMAT:
        raise ConfigurationError(
            f"session store {path}: holds format {found}, this server reads format {FORMAT}; "
            f"run the version of tidegate that wrote it, or a newer one"
        )


def _set_up(connection: sqlite3.Connection, settings: FileSettings) -> None:
    # Smaller pages, less log for each record; 8 and 16 KiB were measured to be no faster with records of 1 to 9 KB.
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {settings.synchronous}")
    # macOS' fsync does not reach the disk without it; other systems ignore it.
    connection.execute(f"PRAGMA fullfsync = {settings.synchronous == 'full':d}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {BACKSTOP_PAGES}")
    # After a burst the log's file shrinks to this again.
    connection.execute(f"PRAGMA journal_size_limit = {BACKSTOP_PAGES * PAGE_BYTES}")
    # Inner pages of a million entries, some 10 MB, stay in memory; records come from the system's page cache.
    connection.execute("PRAGMA cache_size = -16384")
    # Some distributions zero what is deleted, which doubles what is written.
    connection.execute("PRAGMA secure_delete = OFF")
    # A damaged or hostile file should be an error, not a crash. mmap_size stays 0 for that reason too: an I/O error
    # in a mapped file is a signal that kills the process.
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    if settings.max_bytes is not None:
        connection.execute(f"PRAGMA max_page_count = {settings.max_bytes // PAGE_BYTES}")
    if _is_empty(connection):
        _make_tables(connection)


def _make_tables(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        if _is_empty(connection):  # still, now that no other process can write
            for statement in SCHEMA:
                connection.execute(statement)


def _is_empty(connection: sqlite3.Connection) -> bool:
    (num_objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    ids = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    return num_objects == 0 and ids == (0, 0)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _at_start(error: Exception, path: Path) -> TidegateError:
    found = unavailable(error)
    if found.reason == "STORE_CORRUPT":
        return ConfigurationError(f"session store {path}: {_DAMAGED} ({error})", reason=found.reason)
    if is_passing(error) or found.reason == "STORE_FULL":
        return found
    return ConfigurationError(f"session store {path}: {error}")
