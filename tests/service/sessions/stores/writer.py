"""A process that steps a session of a SQLite store and tells what was acknowledged, one number a line.

It is killed, or run into a limit on the size of its files, by test_sqlite.py: ``python writer.py PATH [LIMIT]``.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import sys
from pathlib import Path

from tidegate.api import SessionKey
from tidegate.errors import UnavailableError
from tidegate.sessions.stores.sqlite import SqliteStore
from tidegate.sessions.stores.store import Store, Write

KEY = SessionKey("t", "s")
SIZE = 20_000


def content(number: int) -> bytes:
    return number.to_bytes(8) * (SIZE // 8)


def tell(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def step(store: Store, number: int) -> None:
    """Store ``number`` in the session after ``number - 1``, with a revision that can be told from it."""
    expected = number - 1
    write = Write(KEY, expected.to_bytes(16) if expected else None, number.to_bytes(16), b"", content(number))
    assert await store.write([write]) == [True]
    tell(number)


async def run(path: Path, limit: int | None) -> None:
    store = SqliteStore(path)
    await store.start()
    if limit is not None:
        await run_into(store, limit)
    else:
        for number in itertools.count(1):
            await step(store, number)


async def run_into(store: Store, limit: int) -> None:
    """Write until the limit, say why that failed, lift it and write once more."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    number = 0
    try:
        while True:
            number += 1
            await step(store, number)
    except UnavailableError as error:
        tell(error.reason)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    await step(store, number)
    await store.ping()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
