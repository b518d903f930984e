"""Places where durable sessions are kept while something is measured: the flags of a server that uses one.

They lie on the disk that the repository is on: what /tmp is made of differs, and in memory nothing is ever synced.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.processes import ROOT
from tidegate.sessions.stores.making import SQLITE_FILE
from tidegate.sessions.stores.redis import RedisStore
from tidegate.sessions.stores.sqlite import SqliteStore
from tidegate.sessions.stores.store import Store

BUILD = ROOT / "bench" / "build"


class MissingError(RuntimeError):
    """What a place needs is not on this machine."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where sessions are kept.

    Attributes:
        flags: Of a server that keeps them here.
        pids: Processes that work for it beside the server.
        store: Makes a store of the same sessions for use in this process; for sessions that are in no store it fails.
    """

    flags: tuple[str, ...]
    pids: tuple[int, ...]
    store: Callable[[], Store]


@contextlib.contextmanager
def memory() -> Iterator[Place]:
    """None: all sessions are ephemeral."""

    def none() -> Store:
        raise ValueError("ephemeral sessions are in no store")

    yield Place(("--store", "none"), (), none)


@contextlib.contextmanager
def sqlite(sync: Literal["normal", "full"] = "normal") -> Iterator[Place]:
    """A file of its own, gone with the block."""
    with _directory() as folder:
        flags = ("--store", "sqlite", "--data-dir", str(folder), "--sqlite-sync", sync)
        yield Place(flags, (), lambda: SqliteStore(folder / SQLITE_FILE, sync, busy_seconds=60))


@contextlib.contextmanager
def redis(fsync: Literal["everysec", "always"]) -> Iterator[Place]:
    """A Redis with an append-only file, gone with the block.

    Raises:
        MissingError: There is no Redis here.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        raise MissingError("there is no redis-server: apt-get install redis-server")
    with _directory() as folder:
        port = _free_port()
        # Rewriting the file, which Redis does when it has doubled, is another matter than what a step costs.
        kept = ("--appendonly", "yes", "--appendfsync", fsync, "--save", "", "--auto-aof-rewrite-percentage", "0")
        where = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--logfile", "")
        with _running([binary, *where, *kept]) as pid:
            url = f"redis://127.0.0.1:{port}/0"
            yield Place(("--store", url), (pid,), lambda: RedisStore(url, timeout=60))


PLACES: dict[str, Callable[[], AbstractContextManager[Place]]] = {
    "ephemeral": memory,
    "sqlite": sqlite,
    "sqlite-full": lambda: sqlite("full"),
    "redis": lambda: redis("everysec"),
    "redis-always": lambda: redis("always"),
}


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="store-", dir=BUILD, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[int]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if "Ready to accept connections" in line:
                    break
            else:
                raise MissingError(f"Redis ended before it was ready: {said[-500:]}")
            yield process.pid
        finally:
            process.kill()
