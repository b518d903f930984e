"""Durable sessions in Redis, for many servers on many hosts.

Knows keys and scripts; `redis_line.py` knows connections and errors, and is imported with redis-py only where a server
asks for this store.

A session is one hash ``tidegate:{B}:session:<id>`` with the fields ``revision``, ``record``, ``hidden`` (where
`Store.page` does not show it) and ``attachment:<name>``. B is one of 32 buckets, chosen by the id's CRC-32; each has
two indexes beside its sessions: ``tidegate:{B}:due``, sorted by time, and ``tidegate:{B}:listed``, sorted by id. What
stands in braces is Redis Cluster's hash tag, so that a session and its entries in the indexes lie in one slot: a write
is one script over three keys of that slot, atomic whole. There is no order of updates to get wrong in a crash and
nothing to clean up later; what it costs is that `due` and `page` ask 32 indexes. A step without a new due time leaves
the indexes alone.

Redis is never told to expire anything: when a session ends is the server's business. What is kept when Redis or its
machine goes depends on Redis's settings: ``appendonly yes``, ``appendfsync always`` and an eviction policy that does
not take keys without expiry (docs/durability.md). The keys are fit for a cluster; the connection, so far, is to a
single Redis.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from heapq import nsmallest
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from tidegate.errors import ConfigurationError, UnavailableError
from tidegate.sessions.stores.store import FORMAT, Entry, Write

if TYPE_CHECKING:
    from tidegate.sessions.stores.redis_line import Command, Reply

log = logging.getLogger(__name__)

FORMAT_KEY = "tidegate:format"
BUCKETS = 32
"""Part of the format: which bucket a session is in decides its key."""


class Script(NamedTuple):
    """What Redis runs by its hash; it forgets scripts when it restarts."""

    text: str
    sha1: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# All scripts: KEYS are the session, its bucket's due times and its bucket's listing.

# ARGV: id, expected revision ('' for none), new revision, record, due ('' leaves it, 'never', or seconds), '1' if
# listed, then for each attachment 'put' or 'remove', its field, its content. Out of memory fails the first HSET,
# before anything is changed.
WRITE = _script("""
local stored = redis.call('HMGET', KEYS[1], 'revision', 'hidden')
if (stored[1] or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'revision', ARGV[3], 'record', ARGV[4])
if ARGV[6] ~= '1' then
  redis.call('HSET', KEYS[1], 'hidden', '1')
  redis.call('ZREM', KEYS[3], ARGV[1])
elseif stored[2] or not stored[1] then
  redis.call('HDEL', KEYS[1], 'hidden')
  redis.call('ZADD', KEYS[3], 0, ARGV[1])
end
if ARGV[5] == 'never' then
  redis.call('ZREM', KEYS[2], ARGV[1])
elseif ARGV[5] ~= '' then
  redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
end
for i = 7, #ARGV, 3 do
  if ARGV[i] == 'put' then
    redis.call('HSET', KEYS[1], ARGV[i + 1], ARGV[i + 2])
  else
    redis.call('HDEL', KEYS[1], ARGV[i + 1])
  end
end
return 1
""")

# ARGV: id, expected revision.
DELETE = _script("""
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
""")

# ARGV: id, 'never' or seconds.
POSTPONE = _script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[2] == 'never' then return redis.call('ZREM', KEYS[2], ARGV[1]) end
return redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
""")


class _Bucket(NamedTuple):
    sessions: str
    due: str
    listed: str


_BUCKETS = tuple(
    _Bucket(f"tidegate:{{{number}}}:session:", f"tidegate:{{{number}}}:due", f"tidegate:{{{number}}}:listed")
    for number in range(BUCKETS)
)


class RedisStore:
    """`Store` in Redis.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads them.
        timeout: Seconds after which a call fails.

    Raises:
        ConfigurationError: redis-py is not installed, or the URL is malformed.
    """

    def __init__(self, url: str, timeout: float = 2.0) -> None:
        try:
            from tidegate.sessions.stores import redis_line
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"a Redis store needs the package {error.name}: pip install 'tidegate[redis]'"
            ) from error
        self._theirs = redis_line
        self._line = redis_line.Line(url, timeout)
        # Why nothing may be read or written, once the stored format is found to be another.
        self._refused: str | None = None

    async def start(self) -> None:
        try:
            refused = _refusal((await self._stored_format())[1])
            await self._try_commands()
        except UnavailableError as error:
            await self._line.drop()
            if self._theirs.is_hopeless(error.__cause__):
                raise ConfigurationError(f"the store cannot be used: {error.message}") from error
            raise
        if refused:
            await self._line.drop()
            raise ConfigurationError(refused)
        self._refused = None
        await self._warn_of_losses()

    async def stop(self) -> None:
        await self._line.drop()

    async def ping(self) -> None:
        """Return if it can be written to, and holds our format: servers of another may have come to it meanwhile."""
        was_empty, stored = await self._stored_format()
        if was_empty:
            log.error("Redis was emptied, or came back empty: the sessions that were stored there are gone")
        self._refused = _refusal(stored)
        if self._refused:
            raise self._theirs.away(self._refused)

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        replies = await self._ask([("HMGET", _key(id_), "revision", "record") for id_ in ids])
        return [None if revision is None else Entry(revision, record) for revision, record in replies]

    async def read_attachment(self, id: str, name: str) -> bytes | None:  # noqa: A002
        (content,) = await self._ask([("HGET", _key(id), f"attachment:{name}")])
        return content  # type: ignore[no-any-return]

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        return [reply == 1 for reply in await self._ask([_write(write) for write in writes])]

    async def delete(self, id: str, expected: bytes) -> bool:  # noqa: A002
        (done,) = await self._ask([_run(DELETE, id, expected)])
        return bool(done)

    async def due(self, now: float, limit: int) -> list[str]:
        asked: list[Command] = [
            ("ZRANGEBYSCORE", bucket.due, "-inf", repr(now), "WITHSCORES", "LIMIT", 0, limit) for bucket in _BUCKETS
        ]
        found = [
            (float(at), id_)
            for reply in await self._ask(asked)
            for id_, at in zip(reply[::2], reply[1::2], strict=True)
        ]
        return [id_.decode() for _, id_ in nsmallest(limit, found)]

    async def postpone(self, id: str, at: float | None) -> None:  # noqa: A002
        await self._ask([_run(POSTPONE, id, _when(at))])

    async def page(self, limit: int, after: str) -> list[tuple[str, Entry]]:
        found: list[tuple[str, Entry]] = []
        while missing := limit - len(found):
            ids = await self._listed(missing, after)
            if not ids:
                break
            # Some may be gone by now: then there is room for more, since a short page would say that these were all.
            found += [(id_, entry) for id_, entry in zip(ids, await self._read_shown(ids), strict=True) if entry]
            after = ids[-1]
        return found

    async def _listed(self, limit: int, after: str) -> list[str]:
        replies = await self._ask(
            [("ZRANGEBYLEX", bucket.listed, f"({after}", "+", "LIMIT", 0, limit) for bucket in _BUCKETS]
        )
        return [id_.decode() for id_ in nsmallest(limit, (id_ for reply in replies for id_ in reply))]

    async def _read_shown(self, ids: Sequence[str]) -> list[Entry | None]:
        replies = await self._ask([("HMGET", _key(id_), "revision", "record", "hidden") for id_ in ids])
        return [None if revision is None or hidden else Entry(revision, record) for revision, record, hidden in replies]

    async def _ask(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies, none of them an error."""
        if self._refused:
            raise self._theirs.away(self._refused)
        replies = await self._line.ask(commands)
        unknown = [at for at, reply in enumerate(replies) if self._theirs.is_unknown_script(reply)]
        if unknown:
            again = await self._line.ask([*_LOADS, *(commands[at] for at in unknown)])
            for at, reply in zip(unknown, again[len(_LOADS) :], strict=True):
                replies[at] = reply
        await self._line.check(replies)
        return replies

    async def _stored_format(self) -> tuple[bool, bytes]:
        """Whether there was none, and which there is now: an empty database gets ours."""
        replies = await self._line.ask([("SET", FORMAT_KEY, FORMAT, "NX"), ("GET", FORMAT_KEY)])
        await self._line.check(replies)
        made, stored = replies
        return made is not None, stored

    async def _try_commands(self) -> None:
        """Load the scripts and look at each bucket: that shows now what may not be done, and a node among others."""
        await self._line.check(await self._line.ask([*_LOADS, *(("EXISTS", bucket.due) for bucket in _BUCKETS)]))

    async def _warn_of_losses(self) -> None:
        """Log what Redis's settings let it lose. A managed Redis may not tell them."""
        names = ("maxmemory-policy", "appendonly", "appendfsync")
        replies = await self._line.ask([("CONFIG", "GET", name) for name in names])
        if not all(isinstance(reply, list) and len(reply) == 2 for reply in replies):
            log.warning("Redis does not tell its settings: whether it keeps what it acknowledges is not known")
            return
        losses = _losses(*(value.decode() for _, value in replies))
        if losses:
            log.warning("Redis may lose acknowledged steps: %s", "; ".join(losses))


_LOADS: tuple[Command, ...] = tuple(("SCRIPT", "LOAD", script.text) for script in (WRITE, DELETE, POSTPONE))


def _refusal(stored: bytes) -> str | None:
    """What is wrong with a stored format."""
    if stored == str(FORMAT).encode():
        return None
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


def _place(id_: str) -> _Bucket:
    return _BUCKETS[crc32(id_.encode()) % BUCKETS]


def _key(id_: str) -> str:
    return _place(id_).sessions + id_


def _run(script: Script, id_: str, *arguments: bytes | str) -> Command:
    bucket = _place(id_)
    return ("EVALSHA", script.sha1, 3, bucket.sessions + id_, bucket.due, bucket.listed, id_, *arguments)


def _write(write: Write) -> Command:
    due = "" if write.due is None else _when(write.due.at)
    attachments: list[bytes | str] = []
    for name, content in write.attachments.items():
        attachments += ("remove" if content is None else "put", f"attachment:{name}", content or b"")
    listed = "1" if write.is_listed else "0"
    return _run(WRITE, write.id, write.expected or b"", write.revision, write.record, due, listed, *attachments)


def _when(at: float | None) -> str:
    return "never" if at is None else repr(at)
