"""The ledger: groups, unknown outcomes, and a store that goes and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from tidegate.clock import Clock
from tidegate.errors import UnavailableError
from tidegate.sessions.ids import key_of
from tidegate.sessions.ledger import Ledger
from tidegate.sessions.stores.memory import MemoryStore
from tidegate.sessions.stores.store import Write


@dataclass
class Slow(MemoryStore):
    """A store whose writes wait at a gate; ``groups`` are the ids of each."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    groups: list[list[str]] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        super().__init__()

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        self.groups.append([write.key.id for write in writes])
        self.begun.set()
        await self.gate.wait()
        return await super().write(writes)


def write(id_: str, expected: bytes | None = None, revision: bytes = b"1") -> Write:
    return Write(key_of(id_), expected, revision, b"", b"record")


@pytest.fixture
async def store() -> Slow:
    return Slow()


@pytest.fixture
async def ledger(store: Slow) -> AsyncIterator[Ledger]:
    ledger = Ledger(store, 30, Clock().monotonic)
    await ledger.start()
    yield ledger
    store.gate.set()
    await ledger.stop()


async def test_what_arrives_during_a_write_is_the_next_group(ledger: Ledger, store: Slow) -> None:
    first = asyncio.ensure_future(ledger.write([write("a"), write("b")]))
    await store.begun.wait()
    others = [asyncio.ensure_future(ledger.write([write(name)])) for name in "cde"]
    # The same session again waits for its own turn: one group holds a session once.
    again = asyncio.ensure_future(ledger.write([write("c", b"1", b"2")]))
    await asyncio.sleep(0)
    store.gate.set()
    assert await asyncio.gather(first, *others, again) == [[True, True], [True], [True], [True], [True]]
    assert store.groups == [["a", "b"], ["c", "d", "e"], ["c"]]
    assert ledger.statistics()[:4] == (3, 6, 0, 0)


async def test_a_caller_that_leaves_harms_nobody(ledger: Ledger, store: Slow) -> None:
    leaving = asyncio.ensure_future(ledger.write([write("a")]))
    staying = asyncio.ensure_future(ledger.write([write("b")]))
    await store.begun.wait()
    leaving.cancel()
    store.gate.set()
    assert await staying == [True]
    assert await store.read([key_of("a")]) != [None]


async def test_a_lost_compare_is_counted(ledger: Ledger, store: Slow) -> None:
    store.gate.set()
    assert await ledger.write([write("a")]) == [True]
    assert await ledger.write([write("a", None, b"2"), write("b")]) == [False, True]
    assert ledger.statistics().num_conflicts == 1


@dataclass
class Broken(MemoryStore):
    """Fails in the ways it is told: before a write, or after it."""

    fails: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        how = self.fails.pop(0) if self.fails else ""
        if how == "before":
            raise UnavailableError("cut", reason="STORE_AWAY")
        made = await super().write(writes)
        if how == "after":
            raise UnavailableError("cut", reason="STORE_AWAY")
        return made


async def test_an_unknown_outcome_is_looked_up_write_by_write() -> None:
    store = Broken()
    ledger = Ledger(store, 30, Clock().monotonic)
    await ledger.start()
    await store.write([write("taken", None, b"theirs")])
    store.fails = ["after"]
    made, other = await ledger.write([write("a"), write("taken", b"stale", b"mine")])
    # What others wrote may stand on what was asked for here.
    assert made is True
    assert isinstance(other, UnavailableError)
    store.fails = ["before"]
    (unknown,) = await ledger.write([write("a", b"1", b"2")])
    # What it expects is still there: it may yet come.
    assert isinstance(unknown, UnavailableError)
    assert ledger.is_reachable
    assert await ledger.write([write("a", b"1", b"3")]) == [True]
    await ledger.stop()


async def test_a_store_that_does_not_answer_in_time_is_away_until_it_does() -> None:
    store = Slow()
    ledger = Ledger(store, 0.01, Clock().monotonic)
    await ledger.start()

    async def hang(ids: Sequence[str]) -> list[None]:
        await asyncio.Event().wait()
        raise AssertionError

    read, store.read_summaries = store.read_summaries, hang  # type: ignore[method-assign, assignment]
    (told,) = await ledger.write([write("a")])
    assert isinstance(told, UnavailableError)
    assert (told.reason, told.retry_after, ledger.is_reachable) == ("STORE_AWAY", 1.0, False)
    with pytest.raises(UnavailableError):
        await ledger.read(key_of("a"))
    ledger.changed.clear()
    store.read_summaries = read  # type: ignore[method-assign]
    await ledger.changed.wait()
    assert ledger.is_reachable
    assert await ledger.read(key_of("a")) is None
    await ledger.stop()


async def test_a_store_that_is_not_there_at_the_start_is_waited_for() -> None:
    class Late(MemoryStore):
        num_starts = 0

        async def start(self) -> None:
            self.num_starts += 1
            if self.num_starts == 1:
                raise UnavailableError("not yet", reason="STORE_AWAY")

    ledger = Ledger(Late(), 30, Clock().monotonic)
    await ledger.start()
    assert not ledger.is_reachable
    await ledger.changed.wait()
    assert await ledger.write([write("a")]) == [True]
    await ledger.stop()
