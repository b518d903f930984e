"""Durable sessions in Redis, for many servers on many hosts.

Knows what to ask when. `redis_commands.py` knows keys and scripts, `fast_redis.py` the connection and errors; the
latter imports redis-py, and is itself imported only where a store is made.

Redis is never told to expire anything: when a session ends is the server's business. What is kept when Redis or its
machine goes depends on Redis's settings: ``appendonly yes``, ``appendfsync always`` and an eviction policy that does
not take keys without expiry (docs/durability.md). The keys are fit for a cluster; the connection, so far, is to a
single Redis.
"""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from heapq import nsmallest
from typing import TYPE_CHECKING, NamedTuple

from tidegate.api import SessionKey
from tidegate.errors import ConfigurationError, UnavailableError
from tidegate.sessions.stores import redis_commands as commands
from tidegate.sessions.stores.redis_commands import BUCKETS, FORMAT_KEY, LOADS, MIGRATING, NUM_BUCKETS, Bucket, Command
from tidegate.sessions.stores.store import DUE_CALLS, FORMAT, Due, Entry, Stored, Write, are_steps

if TYPE_CHECKING:
    from tidegate.sessions.stores.fast_redis import Reply

log = logging.getLogger(__name__)

_MOST_COMMANDS = 128
"""In one pipeline."""
_NEVER_DUE = 1e15
_FEW_DUE = 16
"""Of a bucket, at first; what is due is spread over all of them."""


class RedisStore:
    """`Store` in Redis.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads them.
        timeout: Seconds after which a call fails.

    Raises:
        ConfigurationError: redis-py is not installed, or the URL is malformed.
    """

    def __init__(self, url: str, timeout: float = 2.0) -> None:
        check_installed()
        from tidegate.sessions.stores import fast_redis

        self._driver = fast_redis
        self._connection = fast_redis.PipelinedConnection(url, timeout)
        # Why nothing may be read or written, once the stored format is found to be another.
        self._refused: str | None = None
        self._is_cluster = False
        self._due_part = 0
        self._is_index_foreign = False
        # No tenant's name is empty, and no other server tries the same at the same time.
        trial = SessionKey("", f"trial-{secrets.token_hex(8)}")
        self._trial = Write(trial, None, b"trial", b"", b"", Due(_NEVER_DUE))

    async def start(self) -> None:
        try:
            _, stored = await self._stored_format()
            await self._try_commands()
        except UnavailableError as error:
            await self._connection.drop()
            if self._driver.is_hopeless(error.__cause__):
                raise ConfigurationError(f"the store cannot be used: {error.cause}") from error
            raise
        if refused := _refusal(stored):
            await self._connection.drop()
            raise ConfigurationError(refused)
        self._refused = None
        await self._warn_of_losses()

    async def stop(self) -> None:
        await self._connection.drop()

    async def ping(self) -> None:
        """Return if it can be written, and holds our format: servers of another may have come to it meanwhile."""
        was_empty, stored = await self._stored_format()
        if was_empty:
            log.error("Redis was emptied, or came back empty: the sessions that were stored there are gone")
        self._refused = _refusal(stored)
        self._check_refused()
        # By the commands that sessions are written and read with, of which one may be forbidden alone. What a try that
        # was cut short has left is removed first.
        remove = commands.delete(self._trial.key, self._trial.revision)
        _, made = await self._ask([remove, commands.write([self._trial])])
        await self._connection.check(made)
        found, _ = await self._ask([commands.read(self._trial.key, "revision"), remove])
        if (made, found) != ([1], [self._trial.revision]):
            raise self._driver.away(f"Redis answered a write with {made!r} and a read with {found!r}")

    async def time(self) -> float:
        """Return the time of Redis's own clock, which all replicas share."""
        ((seconds, microseconds),) = await self._ask([("TIME",)])
        return float(seconds) + float(microseconds) / 1e6

    async def read(self, keys: Sequence[SessionKey]) -> list[Entry | None]:
        rows = await self._read_rows(keys, "revision", "summary", "body")
        return [None if row is None else Entry(*row) for row in rows]

    async def read_summaries(self, keys: Sequence[SessionKey]) -> list[Stored | None]:
        rows = await self._read_rows(keys, "revision", "summary")
        return [None if row is None else Stored(*row) for row in rows]

    async def read_attachment(self, key: SessionKey, name: str) -> bytes | None:
        (content,) = await self._ask([commands.read_attachment(key, name)])
        return content  # type: ignore[no-any-return]

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        asked = commands.step if are_steps(writes) else commands.write
        made = await self._write(writes, asked)
        if commands.NOT_SHOWN in made:
            places = [at for at, done in enumerate(made) if done == commands.NOT_SHOWN]
            again = await self._write([writes[at] for at in places], commands.write)
            for at, done in zip(places, again, strict=True):
                made[at] = done
        return [done == 1 for done in made]

    async def _write(self, writes: Sequence[Write], asked: Callable[[Sequence[Write]], Command]) -> list[Reply]:
        """Return what the script says of each write."""
        groups = self._groups(writes)
        replies = await self._ask([asked([writes[at] for at in group]) for group in groups])
        made: list[Reply] = [0] * len(writes)
        for group, reply in zip(groups, replies, strict=True):
            # A key that holds something foreign is its own session's trouble: nothing is written there.
            await self._connection.check(
                [done for done in reply if type(done) is not int and not self._driver.is_foreign(done)]
            )
            for at, done in zip(group, reply, strict=True):
                made[at] = done
        return made

    async def delete(self, key: SessionKey, expected: bytes) -> bool:
        (done,) = await self._ask([commands.delete(key, expected)])
        return bool(done)

    async def due(self, now: float, limit: int) -> list[SessionKey]:
        size = NUM_BUCKETS // DUE_CALLS
        buckets = BUCKETS[self._due_part * size :][:size]
        few = min(limit, _FEW_DUE)
        replies = await self._ask_indexes([commands.due(bucket, now, few) for bucket in buckets])
        if sum(map(len, replies)) < limit:
            full = [at for at, reply in enumerate(replies) if len(reply) == few]
            more = await self._ask_indexes([commands.due(buckets[at], now, limit) for at in full])
            for at, reply in zip(full, more, strict=True):
                replies[at] = reply
        found: list[SessionKey] = []
        strikes: list[Command] = []
        for bucket, members in zip(buckets, replies, strict=True):
            keys = {member: commands.key_of(member) for member in members}
            found += [key for key in keys.values() if key is not None and commands.is_of(bucket, key)]
            foreign = [member for member, key in keys.items() if not commands.is_of(bucket, key)]
            if foreign:  # or they would come up first for ever
                strikes.append(commands.strike_due(bucket, foreign))
        await self._ask(strikes)
        if sum(map(len, replies)) < limit:
            self._due_part = (self._due_part + 1) % DUE_CALLS
        return found[:limit]

    async def postpone(self, key: SessionKey, at: float | None) -> None:
        await self._ask([commands.postpone(key, at)])

    async def page(self, tenant: str, limit: int, after: str) -> list[tuple[str, Stored]]:
        found: list[tuple[str, Stored]] = []
        last = commands.member_of(tenant, after)
        while missing := limit - len(found):
            members = await self._listed(tenant, missing, last)
            if not members:
                break
            # Some may be gone by now: then there is room for more, since a short page would say that these were all.
            keys = [key for key in dict.fromkeys(map(commands.key_of, members)) if key is not None]
            for key, row in zip(keys, await self._read_rows(keys, "revision", "summary", "hidden"), strict=True):
                if row is not None and not row[2]:
                    found.append((key.id, Stored(*row[:2])))
            last = members[-1]
        return found

    async def _listed(self, tenant: str, limit: int, after: bytes) -> list[bytes]:
        """Return the first members above ``after``, merged from all buckets: few of each, more only where these run
        out.
        """
        merge = _Merge(NUM_BUCKETS, limit, after)
        while lacking := merge.lacking():
            asked = [commands.listed(BUCKETS[at], tenant, count, above) for at, count, above in lacking]
            merge.take(lacking, await self._ask_indexes(asked))
        return merge.first()

    async def _ask_indexes(self, asked: Sequence[Command]) -> list[Reply]:
        """The replies; nothing of an index that holds something foreign: it hides its own bucket's sessions only."""
        replies = await self._replies(asked)
        foreign = [command[1] for command, reply in zip(asked, replies, strict=True) if self._driver.is_foreign(reply)]
        if foreign and not self._is_index_foreign:
            log.error(
                "Redis holds something foreign under %s: the sessions of that bucket are not found there", foreign[0]
            )
        self._is_index_foreign = bool(foreign)
        found = [[] if self._driver.is_foreign(reply) else reply for reply in replies]
        await self._connection.check(found)
        return found

    async def _read_rows(self, keys: Sequence[SessionKey], *fields: str) -> list[tuple[bytes, ...] | None]:
        """Return fields of sessions, in order; None of what is not stored, empty bytes for what cannot be read."""
        replies = await self._replies([commands.read(key, *fields) for key in keys])
        await self._connection.check([reply for reply in replies if not self._driver.is_foreign(reply)])
        return [_row(reply, len(fields)) if isinstance(reply, list) else (b"",) * len(fields) for reply in replies]

    def _groups(self, writes: Sequence[Write]) -> list[list[int]]:
        """Which of them go in one command, by their places in the list."""
        if not self._is_cluster:
            return [list(range(len(writes)))] if writes else []
        groups: defaultdict[Bucket, list[int]] = defaultdict(list)
        for at, write in enumerate(writes):
            groups[commands.place_of(write.key).bucket].append(at)
        return list(groups.values())

    async def _ask(self, asked: Sequence[Command]) -> list[Reply]:
        """The replies, none of them an error."""
        replies = await self._replies(asked)
        await self._connection.check(replies)
        return replies

    async def _replies(self, asked: Sequence[Command]) -> list[Reply]:
        """The replies, asked for in parts: neither Redis nor this process does anything else meanwhile."""
        self._check_refused()
        replies: list[Reply] = []
        for start in range(0, len(asked), _MOST_COMMANDS):
            replies += await self._connection.ask(asked[start : start + _MOST_COMMANDS])
        unknown = [at for at, reply in enumerate(replies) if self._driver.is_unknown_script(reply)]
        if unknown:
            again = await self._connection.ask([*LOADS, *(asked[at] for at in unknown)])
            for at, reply in zip(unknown, again[len(LOADS) :], strict=True):
                replies[at] = reply
        return replies

    def _check_refused(self) -> None:
        if self._refused:
            raise self._driver.away(self._refused)

    async def _stored_format(self) -> tuple[bool, bytes]:
        """Whether there was none, and which there is now: an empty database gets ours."""
        replies = await self._connection.ask([("SET", FORMAT_KEY, FORMAT, "NX"), ("GET", FORMAT_KEY)])
        await self._connection.check(replies)
        made, stored = replies
        return made is not None, stored

    async def _try_commands(self) -> None:
        """Load the scripts, ask the time, look at each bucket, and write to no two of them, which a cluster forbids.

        Shows now rather than later what may not be done, and a node that has only some of the slots.
        """
        looks = [("EXISTS", bucket.due) for bucket in BUCKETS]
        *replies, written = await self._connection.ask([*LOADS, ("TIME",), *looks, commands.NOTHING_ACROSS_BUCKETS])
        self._is_cluster = self._driver.is_across_slots(written)
        await self._connection.check(replies if self._is_cluster else [*replies, written])

    async def _warn_of_losses(self) -> None:
        """Log what Redis's settings let it lose. A managed Redis may not tell them."""
        names = ("maxmemory-policy", "appendonly", "appendfsync")
        replies = await self._connection.ask([("CONFIG", "GET", name) for name in names])
        if not all(isinstance(reply, list) and len(reply) == 2 for reply in replies):
            log.warning("Redis does not tell its settings: whether it keeps what it acknowledges is not known")
            return
        losses = _losses(*(value.decode() for _, value in replies))
        if losses:
            log.warning("Redis may lose acknowledged steps: %s", "; ".join(losses))


def check_installed() -> None:
    """Raise ConfigurationError unless the packages are installed that a Redis store needs."""
    try:
        from tidegate.sessions.stores import fast_redis  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"a Redis store needs the package {error.name}: pip install 'tidegate[redis]'"
        ) from error


def _row(reply: Sequence[bytes | None], size: int) -> tuple[bytes, ...] | None:
    return None if reply == [None] * size else tuple(b"" if value is None else value for value in reply)


def _refusal(stored: bytes) -> str | None:
    """What is wrong with a stored format."""
    if stored == str(FORMAT).encode():
        return None
    if stored in {b"1", MIGRATING.encode()}:
        what = "is of format 1" if stored == b"1" else "was not migrated to the end"
        return (
            f"the store in Redis {what}, this tidegate reads format {FORMAT}: stop every server, run "
            "`tidegate sessions migrate --store URL`, then start them"
        )
    return f"the store in Redis has format {stored.decode(errors='replace')}, this tidegate reads format {FORMAT}"


def _losses(policy: str, appendonly: str, appendfsync: str) -> list[str]:
    """What Redis loses by these settings, and when. Policies of the kind volatile-* take only keys with an expiry."""
    losses = []
    if policy.startswith("allkeys-"):
        losses.append(f"maxmemory-policy is {policy}: sessions vanish when its memory is full")
    if appendonly != "yes":
        losses.append("appendonly is no: what came after its last snapshot is gone when it stops")
    elif appendfsync != "always":
        losses.append(f"appendfsync is {appendfsync}: the last moments are gone when its machine loses power")
    return losses


class _Lack(NamedTuple):
    """What must be read of a list: so many names of those above one."""

    number: int
    num_wanted: int
    above: bytes


class _Merge:
    """The smallest names of many sorted lists, of which a few of each are read at a time.

    Args:
        num_lists: How many lists there are; no name is in two.
        limit: How many names are wanted.
        after: Above which.
    """

    def __init__(self, num_lists: int, limit: int, after: bytes) -> None:
        self._limit = limit
        self._names: list[list[bytes]] = [[] for _ in range(num_lists)]
        self._last = [after] * num_lists
        self._open = set(range(num_lists))
        # Names are spread evenly: twice its share is enough of nearly every list.
        self._count = 2 * limit // num_lists + 2

    def first(self) -> list[bytes]:
        """Return the smallest names of those read."""
        return nsmallest(self._limit, (name for names in self._names for name in names))

    def lacking(self) -> list[_Lack]:
        """Return what must be read before `first` is right; nothing where it is."""
        first = self.first()
        # A list that was read up to the last of them, or beyond, holds no other that belongs among them.
        end = first[-1] if len(first) == self._limit else None
        return [
            _Lack(at, self._count, self._last[at]) for at in sorted(self._open) if end is None or self._last[at] < end
        ]

    def take(self, lacking: Sequence[_Lack], replies: Sequence[Sequence[bytes]]) -> None:
        """Take in what was read."""
        for (at, count, _), names in zip(lacking, replies, strict=True):
            self._names[at] += names
            if len(names) < count:
                self._open.discard(at)
            else:
                self._last[at] = names[-1]
        self._count *= 2
