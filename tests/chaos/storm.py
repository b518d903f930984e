"""Faults, drawn from a seed, one after the other: each does harm, lets clients run into it, and undoes it.

Times are counted in answers that clients got or gave up, so nothing here looks at a clock.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.cluster import Replica
from tests.chaos.history import History
from tests.proxy import Proxy
from tests.redis import RedisServer

LONGEST_CALM = 120  # answers between two faults
LONGEST_HARM = 40


@dataclass(slots=True)
class Site:
    """What can be harmed: replicas and, where the store is Redis, that and each replica's line to it.

    ``clock`` is a file that tells the first replica by how much its clock is wrong, as libfaketime reads it.
    """

    replicas: Sequence[Replica]
    redis: RedisServer | None = None
    lines: Sequence[Proxy] = ()
    clock: Path | None = None


@dataclass(slots=True)
class Storm:
    """The faults of one run: ``num_faults`` by name. ``problems`` are what replicas did wrong of their own accord."""

    site: Site
    history: History
    seed: int
    num_faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    async def rage(self, names: Sequence[str]) -> None:
        """Do the named faults in this order, at random moments."""
        chance = random.Random(f"{self.seed}/storm")
        for name in names:
            await self.history.pass_by(chance.randint(1, LONGEST_CALM))
            await FAULTS[name](self, chance)
            self.num_faults[name] += 1

    async def kill_replica(self, chance: random.Random) -> None:
        replica = chance.choice(self.site.replicas)
        await replica.kill()
        await self.history.pass_by(chance.randint(1, LONGEST_HARM))
        await replica.start()

    async def kill_all_replicas(self, chance: random.Random) -> None:
        await asyncio.gather(*(replica.kill() for replica in self.site.replicas))
        await asyncio.gather(*(replica.start() for replica in self.site.replicas))

    async def pause_replica(self, chance: random.Random) -> None:
        """It wakes up with sessions that others have stepped, and with requests that nobody waits for."""
        replica = chance.choice(self.site.replicas)
        replica.tell(signal.SIGSTOP)
        await self.history.pass_by(chance.randint(LONGEST_HARM, 4 * LONGEST_HARM))
        replica.tell(signal.SIGCONT)

    async def drain_replica(self, chance: random.Random) -> None:
        replica = chance.choice(self.site.replicas)
        replica.tell(signal.SIGTERM)
        code = await replica.ended()
        said = "".join(replica.said)
        if code != 0 or "drain cut short" in said:
            self.problems.append(f"{replica.name} did not come to an end by itself, but with {code}: {said}")
        await replica.start()

    async def kill_worker(self, chance: random.Random) -> None:
        """One of a replica's processes; its supervisor starts it again."""
        replica = chance.choice(self.site.replicas)
        await replica.kill_worker(chance.choice(sorted(replica.workers)))

    async def jump_clock(self, chance: random.Random) -> None:
        """Days forth or back, at once."""
        assert self.site.clock is not None
        self.site.clock.write_text(f"{chance.choice('+-')}{chance.randint(1, 1000)}d")

    async def kill_store(self, chance: random.Random) -> None:
        redis = self.site.redis
        assert redis is not None
        redis.kill()
        await self.history.pass_by(chance.randint(1, LONGEST_HARM))
        await asyncio.to_thread(redis.start)

    async def pause_store(self, chance: random.Random) -> None:
        assert self.site.redis is not None
        self.site.redis.pause()
        await self.history.pass_by(chance.randint(1, LONGEST_HARM))
        self.site.redis.resume()

    async def cut_line(self, chance: random.Random) -> None:
        line = chance.choice(self.site.lines)
        line.cut()
        await self.history.pass_by(chance.randint(1, LONGEST_HARM))
        line.heal()

    async def hold_line(self, chance: random.Random) -> None:
        """Commits under way arrive when their replica has given them up."""
        line = chance.choice(self.site.lines)
        line.hold()
        await self.history.pass_by(chance.randint(1, 4 * LONGEST_HARM))
        line.heal()


FAULTS: dict[str, Callable[[Storm, random.Random], Awaitable[None]]] = {
    "replica killed": Storm.kill_replica,
    "all replicas killed": Storm.kill_all_replicas,
    "replica paused": Storm.pause_replica,
    "replica drained": Storm.drain_replica,
    "store killed": Storm.kill_store,
    "store paused": Storm.pause_store,
    "line to the store cut": Storm.cut_line,
    "line to the store held": Storm.hold_line,
    "worker killed": Storm.kill_worker,
    "clock jumped": Storm.jump_clock,
}
ON_ANY_STORE = ("replica killed", "all replicas killed", "replica paused", "replica drained")
ON_REDIS = (
    *ON_ANY_STORE,
    "store killed",
    "store paused",
    "line to the store cut",
    "line to the store held",
)
