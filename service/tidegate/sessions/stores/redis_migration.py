"""A Redis of format 1 → one of the format that is served, session by session, with every server stopped.

While it lasts the stored format is `MIGRATING`, which no server takes. A session is written under its new key before it
leaves its old one, so what was cut short is begun again, and goes on where it was.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tidegate.errors import ConfigurationError
from tidegate.sessions.format1 import OLD_FORMAT, damaged, migrate_checkpoint, migrate_record
from tidegate.sessions.ids import key_of
from tidegate.sessions.stores.fast_redis import CLIENT_NAME, PipelinedConnection, Reply
from tidegate.sessions.stores.redis_commands import FORMAT_KEY, LOADS, MIGRATING, Command, write
from tidegate.sessions.stores.store import FORMAT, Due, Write

_NUM_BUCKETS = 32
_SCANNED = 512
_TOGETHER = 16
"""Sessions that are read at once: each may have megabytes."""
_ATTACHMENT = b"attachment:"

Progress = Callable[[int, int], None]
"""Is told how many sessions are done, of about how many."""


class RedisMigration(NamedTuple):
    """What was migrated; damaged sessions stay, and stay damaged."""

    num_sessions: int
    num_damaged: int


class _Old(NamedTuple):
    """Where format 1 kept a session."""

    id: str
    session: str
    due: str
    listed: str


async def migrate(url: str, timeout: float, progress: Progress) -> RedisMigration:  # noqa: ASYNC109 - of one call
    """Migrate a Redis; nothing where it holds the served format, or none.

    Raises:
        ConfigurationError: The format is a newer one, or servers are connected.
        UnavailableError: Redis does not answer: to be called again.
    """
    connection = PipelinedConnection(url, timeout)
    try:
        (stored,) = await _ask(connection, [("GET", FORMAT_KEY)])
        if stored in {None, str(FORMAT).encode()}:
            return RedisMigration(0, 0)
        if stored not in {str(OLD_FORMAT).encode(), MIGRATING.encode()}:
            raise ConfigurationError(
                f"the store in Redis has format {stored.decode(errors='replace')}; this tidegate migrates format "
                f"{OLD_FORMAT} to {FORMAT}"
            )
        await _check_alone(connection)
        (*_, total) = await _ask(connection, [*LOADS, ("SET", FORMAT_KEY, MIGRATING), ("DBSIZE",)])
        done = await _move_all(connection, total, progress)
        await _clean(connection)
        await _ask(connection, [("SET", FORMAT_KEY, FORMAT)])
        return done
    finally:
        await connection.drop()


async def _check_alone(connection: PipelinedConnection) -> None:
    """Raise ConfigurationError where a server is connected: it would go on with what is moved away."""
    clients, own = await connection.ask([("CLIENT", "LIST"), ("CLIENT", "ID")])
    if not isinstance(clients, bytes) or not isinstance(own, int):
        return  # a managed Redis may not tell
    names = [dict(re.findall(r"(\w+)=(\S*)", client)) for client in clients.decode(errors="replace").splitlines()]
    database = next((client["db"] for client in names if client["id"] == str(own)), "0")
    others = [client for client in names if client["name"] == CLIENT_NAME and client["db"] == database]
    if len(others) > 1:
        raise ConfigurationError(
            f"{len(others) - 1} connections of tidegate's are open to this Redis: stop every server, then migrate"
        )


async def _move_all(connection: PipelinedConnection, total: int, progress: Progress) -> RedisMigration:
    num_sessions = num_damaged = 0
    cursor = b"0"
    while True:
        ((cursor, names),) = await _ask(
            connection, [("SCAN", cursor, "MATCH", "tidegate:{*}:session:*", "COUNT", _SCANNED)]
        )
        olds = [old for name in names if (old := _old(name)) is not None]
        for start in range(0, len(olds), _TOGETHER):
            some = olds[start : start + _TOGETHER]
            num_damaged += await _move(connection, some)
            num_sessions += len(some)
            progress(num_sessions, max(total, num_sessions))
        if cursor == b"0":
            return RedisMigration(num_sessions, num_damaged)


async def _move(connection: PipelinedConnection, olds: Sequence[_Old]) -> int:
    """Move some sessions; return how many of them are damaged."""
    asked: list[Command] = []
    for old in olds:
        asked += (("HGETALL", old.session), ("ZSCORE", old.due, old.id))
    replies = await connection.ask(asked)
    num_damaged, writes, leaves = 0, [], []
    for old, fields, due in zip(olds, replies[::2], replies[1::2], strict=True):
        if not isinstance(fields, list) or not fields:
            num_damaged += isinstance(fields, Exception)  # what is no session of ours stays where it is
            continue
        moved, is_damaged = _write(old, dict(zip(fields[::2], fields[1::2], strict=True)), due)
        num_damaged += is_damaged
        # One that an earlier try has written already is not written again.
        writes.append(write([moved]))
        leaves += [("UNLINK", old.session), ("ZREM", old.due, old.id), ("ZREM", old.listed, old.id)]
    for reply in await _ask(connection, writes):
        await connection.check(reply)
    await _ask(connection, leaves)
    return num_damaged


def _write(old: _Old, fields: dict[bytes, bytes], due: Reply) -> tuple[Write, bool]:
    revision, content = fields.get(b"revision", b""), fields.get(b"record", b"")
    migrated = migrate_record(old.id, revision, content) if revision else damaged(content)
    attachments: dict[str, bytes | None] = {
        name.removeprefix(_ATTACHMENT).decode(errors="replace"): migrate_checkpoint(
            old.id, name.removeprefix(_ATTACHMENT).decode(errors="replace"), value
        )
        for name, value in fields.items()
        if name.startswith(_ATTACHMENT)
    }
    moved = Write(
        key_of(old.id),
        None,
        revision,
        migrated.summary,
        migrated.body,
        Due(float(due)) if isinstance(due, bytes) else None,
        is_listed=b"hidden" not in fields,
        attachments=attachments,
    )
    return moved, migrated.is_damaged


async def _clean(connection: PipelinedConnection) -> None:
    """Remove from the indexes what format 1 left there without a session: names without a tenant."""
    for number in range(_NUM_BUCKETS):
        for index in (f"tidegate:{{{number}}}:due", f"tidegate:{{{number}}}:listed"):
            cursor = b"0"
            while True:
                ((cursor, scored),) = await _ask(connection, [("ZSCAN", index, cursor, "COUNT", _SCANNED)])
                left = [member for member in scored[::2] if b":" not in member]
                await _ask(connection, [("ZREM", index, *left)] if left else [])
                if cursor == b"0":
                    break


def _old(name: bytes) -> _Old | None:
    """Return where a key of format 1 is; None of any other, among them those that are migrated."""
    found = re.fullmatch(r"tidegate:\{(\d+)\}:session:([A-Za-z0-9._~-]+)", name.decode(errors="replace"))
    if found is None or int(found[1]) != zlib.crc32(found[2].encode()) % _NUM_BUCKETS:
        return None
    prefix = f"tidegate:{{{found[1]}}}"
    return _Old(found[2], found[0], f"{prefix}:due", f"{prefix}:listed")


async def _ask(connection: PipelinedConnection, asked: Sequence[Command]) -> list[Reply]:
    replies = await connection.ask(asked)
    await connection.check(replies)
    return replies
