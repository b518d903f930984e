"""Durable sessions in Redis, for many servers on many hosts.

Knows what to ask when. `redis_commands.py` knows keys and scripts, `redis_line.py` connections and errors; the latter
imports redis-py, and is itself imported only where a store is made.

Redis is never told to expire anything: when a session ends is the server's business. What is kept when Redis or its
machine goes depends on Redis's settings: ``appendonly yes``, ``appendfsync always`` and an eviction policy that does
not take keys without expiry (docs/durability.md). The keys are fit for a cluster; the connection, so far, is to a
single Redis.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from heapq import nsmallest
from typing import TYPE_CHECKING

from tidegate.errors import ConfigurationError, UnavailableError
from tidegate.sessions.stores import redis_commands as commands
from tidegate.sessions.stores.redis_commands import BUCKETS, FORMAT_KEY, LOADS, Bucket, Command
from tidegate.sessions.stores.store import FORMAT, Entry, Write

if TYPE_CHECKING:
    from tidegate.sessions.stores.redis_line import Reply

log = logging.getLogger(__name__)


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
        self._is_cluster = False

    async def start(self) -> None:
        try:
            _, stored = await self._stored_format()
            await self._try_commands()
        except UnavailableError as error:
            await self._line.drop()
            if self._theirs.is_hopeless(error.__cause__):
                raise ConfigurationError(f"the store cannot be used: {error.message}") from error
            raise
        if refused := _refusal(stored):
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
        self._check_refused()

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        replies = await self._ask([commands.read(id_, "revision", "record") for id_ in ids])
        return [None if revision is None else Entry(revision, record) for revision, record in replies]

    async def read_attachment(self, id: str, name: str) -> bytes | None:  # noqa: A002
        (content,) = await self._ask([commands.read_attachment(id, name)])
        return content  # type: ignore[no-any-return]

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        groups = self._groups(writes)
        replies = await self._ask([commands.write([writes[at] for at in group]) for group in groups])
        made = [False] * len(writes)
        for group, reply in zip(groups, replies, strict=True):
            await self._line.check(reply)
            for at, done in zip(group, reply, strict=True):
                made[at] = done == 1
        return made

    async def delete(self, id: str, expected: bytes) -> bool:  # noqa: A002
        (done,) = await self._ask([commands.delete(id, expected)])
        return bool(done)

    async def due(self, now: float, limit: int) -> list[str]:
        found: list[tuple[float, bytes]] = []
        for reply in await self._ask([commands.due(bucket, now, limit) for bucket in BUCKETS]):
            found += zip(map(float, reply[1::2]), reply[::2], strict=True)
        return [id_.decode() for _, id_ in nsmallest(limit, found)]

    async def postpone(self, id: str, at: float | None) -> None:  # noqa: A002
        await self._ask([commands.postpone(id, at)])

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
        replies = await self._ask([commands.listed(bucket, limit, after) for bucket in BUCKETS])
        return [id_.decode() for id_ in nsmallest(limit, (id_ for reply in replies for id_ in reply))]

    async def _read_shown(self, ids: Sequence[str]) -> list[Entry | None]:
        replies = await self._ask([commands.read(id_, "revision", "record", "hidden") for id_ in ids])
        return [None if revision is None or hidden else Entry(revision, record) for revision, record, hidden in replies]

    def _groups(self, writes: Sequence[Write]) -> list[list[int]]:
        """Which of them go in one command, by their places in the list."""
        if not self._is_cluster:
            return [list(range(len(writes)))] if writes else []
        groups: defaultdict[Bucket, list[int]] = defaultdict(list)
        for at, write in enumerate(writes):
            groups[commands.bucket_of(write.id)].append(at)
        return list(groups.values())

    async def _ask(self, asked: Sequence[Command]) -> list[Reply]:
        """The replies, none of them an error."""
        self._check_refused()
        replies = await self._line.ask(asked)
        unknown = [at for at, reply in enumerate(replies) if self._theirs.is_unknown_script(reply)]
        if unknown:
            again = await self._line.ask([*LOADS, *(asked[at] for at in unknown)])
            for at, reply in zip(unknown, again[len(LOADS) :], strict=True):
                replies[at] = reply
        await self._line.check(replies)
        return replies

    def _check_refused(self) -> None:
        if self._refused:
            raise self._theirs.away(self._refused)

    async def _stored_format(self) -> tuple[bool, bytes]:
        """Whether there was none, and which there is now: an empty database gets ours."""
        replies = await self._line.ask([("SET", FORMAT_KEY, FORMAT, "NX"), ("GET", FORMAT_KEY)])
        await self._line.check(replies)
        made, stored = replies
        return made is not None, stored

    async def _try_commands(self) -> None:
        """Load the scripts, look at each bucket, and write nothing over two of them, which a cluster does not allow.

        Shows now rather than later what may not be done, and a node that has only some of the slots.
        """
        looks = [("EXISTS", bucket.due) for bucket in BUCKETS]
        *replies, written = await self._line.ask([*LOADS, *looks, commands.NOTHING_ACROSS_BUCKETS])
        self._is_cluster = self._theirs.is_across_slots(written)
        await self._line.check(replies if self._is_cluster else [*replies, written])

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
