"""Replicas over one store, all in this process: what one does, the others must see."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.clock import ManualClock
from tests.service.serving import check_integrity
from tidegate.api import Input, Prediction, SessionInfo, SessionKey, SessionRequest, StepOptions, StepResult
from tidegate.clock import Clock
from tidegate.config import load_settings
from tidegate.errors import UnavailableError
from tidegate.service import Service
from tidegate.sessions.ids import key_of
from tidegate.sessions.stores.memory import MemoryStore
from tidegate.sessions.stores.store import Entry, Stored, Write

MODEL = "tiny-lstm"


@dataclass
class Faulty(MemoryStore):
    """A store that fails when told to.

    Attributes:
        clock: Its own.
        is_away: Whether it answers nothing.
        is_read_only: Whether it takes no writes.
        lost_replies: How many writes it will make and not confirm.
        counts: Of writes that were asked for, and of bodies that were read; those of all stores on the place.
        meanwhile: By the name of a call, what others do once between the next such call and its answer.
    """

    clock: Clock
    is_away: bool = False
    is_read_only: bool = False
    lost_replies: int = 0
    meanwhile: dict[str, Callable[[], Awaitable[Any]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__(self.clock)

    async def ping(self) -> None:
        self._check()
        self._check_writable()

    async def start(self) -> None:
        self._check()

    async def read(self, keys: Sequence[SessionKey]) -> list[Entry | None]:
        self._check()
        self.counts["read"] += len(keys)
        found = await super().read(keys)
        await self._wait("read")
        return found

    async def read_summaries(self, keys: Sequence[SessionKey]) -> list[Stored | None]:
        self._check()
        found = await super().read_summaries(keys)
        await self._wait("read_summaries")
        return found

    async def read_attachment(self, key: SessionKey, name: str) -> bytes | None:
        content = await super().read_attachment(key, name)
        await self._wait("read_attachment")
        return content

    def beside(self, clock: Clock) -> Faulty:
        """Another store on the same place, which goes by another clock."""
        other = Faulty(clock)
        other._kept, other.counts = self._kept, self.counts
        return other

    def damage(self, id_: str) -> None:
        """Flip a bit of the session's summary, and one of its body."""
        kept = self._kept[key_of(id_)]
        revision, summary, body = kept.entry
        kept.entry = Entry(revision, _flipped(summary), _flipped(body))

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        self._check()
        self._check_writable()
        self.counts["written"] += len(writes)
        made = await super().write(writes)
        await self._wait("write")
        if self.lost_replies:
            self.lost_replies -= 1
            raise UnavailableError("the reply was lost", reason="STORE_AWAY")
        return made

    async def _wait(self, call: str) -> None:
        if call in self.meanwhile:
            await self.meanwhile.pop(call)()

    def _check_writable(self) -> None:
        if self.is_read_only:
            raise UnavailableError("the store takes no writes", reason="STORE_AWAY")

    def _check(self) -> None:
        if self.is_away:
            raise UnavailableError("the store is away", reason="STORE_AWAY")


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@dataclass
class Replicas:
    """Services over one store, and the clock that they share.

    Attributes:
        store: The one of all; with skewed clocks, one beside theirs.
        skews: Seconds that each one's wall clock, and the store's as it sees it, is ahead.
    """

    services: list[Service]
    clock: ManualClock
    store: Faulty
    skews: list[float]

    def __iter__(self) -> Any:
        return iter(self.services)

    async def open(self, id_: str | None = "s", **options: Any) -> SessionInfo:
        request = SessionRequest(**{"model": MODEL, "durable": True, "id": id_, **options})
        return await self.services[0].open_session(request)

    async def whole(self, text: str, version: str = "1") -> Prediction:
        """What the model says to all of ``text`` at once."""
        result = await self.services[0].predict(MODEL, version, [Input(text=text)], StepOptions())
        return result.predictions[0]


@asynccontextmanager
async def replicas(
    root: Path, count: int = 2, skews: Sequence[float] | None = None, **settings: Any
) -> AsyncIterator[Replicas]:
    """Started services over one store; when they are left, nothing leaked in any of them. With ``skews`` each sees the
    store by a clock of its own, as far ahead of the right one.
    """
    clock = ManualClock()
    store = Faulty(clock.clock())
    given = load_settings({"bundles": root, "store_timeout": 30, **settings})
    ahead = list(skews or [0.0] * count)
    async with AsyncExitStack() as stack:
        services = []
        for number in range(count):
            own = Clock(clock.clock().monotonic, partial(_skewed_wall, clock, ahead, number))
            services.append(Service(given, own, store if skews is None else store.beside(own)))
            await services[-1].start()
            stack.push_async_callback(services[-1].stop)
        yield Replicas(services, clock, store, ahead)
        for service in services:
            await service.drain()
            check_integrity(service)


def _skewed_wall(clock: ManualClock, skews: Sequence[float], number: int) -> float:
    return clock.clock().wall() + skews[number]


async def step(service: Service, text: str, position: int | None = None, id_: str = "s", **options: Any) -> StepResult:
    return await service.step(id_, Input(text=text), StepOptions(**options), position)
