"""The committer: groups, unknown outcomes, and a store that goes and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from tidegate.api import SessionKey
from tidegate.clock import Clock
from tidegate.errors import ConfigurationError, UnavailableError
from tidegate.sessions.committer import GroupCommitter
from tidegate.sessions.ids import key_of
from tidegate.sessions.stores.memory import MemoryStore
from tidegate.sessions.stores.store import Entry, Stored, Write


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
async def committer(store: Slow) -> AsyncIterator[GroupCommitter]:
    committer = GroupCommitter(store, 30, Clock().monotonic)
    await committer.start()
    yield committer
    store.gate.set()
    await committer.stop()


async def test_what_arrives_during_a_write_is_the_next_group(committer: GroupCommitter, store: Slow) -> None:
    first = asyncio.ensure_future(committer.write([write("a"), write("b")]))
    await store.begun.wait()
    others = [asyncio.ensure_future(committer.write([write(name)])) for name in "cde"]
    # The same session again waits for its own turn: one group holds a session once.
    again = asyncio.ensure_future(committer.write([write("c", b"1", b"2")]))
    await asyncio.sleep(0)
    store.gate.set()
    assert await asyncio.gather(first, *others, again) == [[True, True], [True], [True], [True], [True]]
    assert store.groups == [["a", "b"], ["c", "d", "e"], ["c"]]
    assert committer.statistics()[:4] == (3, 6, 0, 0)


async def test_a_caller_that_leaves_harms_nobody(committer: GroupCommitter, store: Slow) -> None:
    leaving = asyncio.ensure_future(committer.write([write("a")]))
    staying = asyncio.ensure_future(committer.write([write("b")]))
    await store.begun.wait()
    leaving.cancel()
    store.gate.set()
    assert await staying == [True]
    assert await store.read([key_of("a")]) != [None]


async def test_a_lost_compare_is_counted(committer: GroupCommitter, store: Slow) -> None:
    store.gate.set()
    assert await committer.write([write("a")]) == [True]
    assert await committer.write([write("a", None, b"2"), write("b")]) == [False, True]
    assert committer.statistics().num_conflicts == 1


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
    committer = GroupCommitter(store, 30, Clock().monotonic)
    await committer.start()
    await store.write([write("taken", None, b"theirs")])
    store.fails = ["after"]
    made, other = await committer.write([write("a"), write("taken", b"stale", b"mine")])
    # What others wrote may stand on what was asked for here.
    assert made is True
    assert isinstance(other, UnavailableError)
    store.fails = ["before"]
    (unknown,) = await committer.write([write("a", b"1", b"2")])
    # What it expects is still there: it may yet come.
    assert isinstance(unknown, UnavailableError)
    assert committer.is_available
    assert await committer.write([write("a", b"1", b"3")]) == [True]
    await committer.stop()


@dataclass
class Frozen(MemoryStore):
    """Answers, and cannot be written while it is frozen; a read may break, or not return.

    Attributes:
        frozen: Why it cannot be written.
        thaws: How many more times it is asked whether it can until it can.
        hung: Sessions whose reads never return.
        num_pings: How often it was asked whether it can be written.
    """

    frozen: str = ""
    thaws: int = 0
    hung: set[str] = field(default_factory=set)
    num_pings: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    async def ping(self) -> None:
        self.num_pings += 1
        if self.thaws:
            self.thaws -= 1
            if not self.thaws:
                self.frozen = ""
        self._check()

    async def read(self, keys: Sequence[SessionKey]) -> list[Entry | None]:
        ids = {key.id for key in keys}
        if self.hung & ids:
            await asyncio.Event().wait()
        if "broken" in ids:
            raise ValueError("no such name")
        return await super().read(keys)

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        if any(write.key.id == "broken" for write in writes):
            raise ValueError("no such name")
        self._check()
        return await super().write(writes)

    def _check(self) -> None:
        if self.frozen:
            raise UnavailableError(self.frozen, reason="STORE_AWAY")


async def test_a_store_that_is_read_and_cannot_be_written_is_away_until_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Frozen()
    committer = GroupCommitter(store, 30, Clock().monotonic)
    await committer.start()
    assert await committer.write([write("a")]) == [True]
    committer.changed.clear()
    store.frozen, store.thaws = "a replica", 4
    (told,) = await committer.write([write("a", b"1", b"2")])
    assert isinstance(told, UnavailableError)
    # Who was told finds everybody told the same.
    assert (committer.is_available, committer.statistics().is_available, committer.changed.is_set()) == (
        False,
        False,
        True,
    )
    with pytest.raises(UnavailableError):
        await committer.read(key_of("a"))
    committer.changed.clear()
    await committer.changed.wait()
    assert committer.statistics().is_available
    assert (await committer.read(key_of("a"))) is not None
    assert caplog.messages == ["the store is away: a replica", "the store is back: it can be written"]
    assert store.num_pings == 4
    await committer.stop()


async def test_a_call_that_fails_alone_does_not_speak_for_the_store() -> None:
    store = Frozen(hung={"a"})
    committer = GroupCommitter(store, 0.01, Clock().monotonic)
    await committer.start()
    with pytest.raises(UnavailableError, match="in time"):
        await committer.read(key_of("a"))
    assert committer.statistics().is_available
    assert await committer.write([write("b")]) == [True]
    store.frozen = "a replica"
    with pytest.raises(UnavailableError, match="in time"):
        await committer.read(key_of("a"))
    assert not committer.is_available
    await committer.stop()


async def test_calls_that_fail_together_ask_once_and_none_trusts_an_answer_from_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Frozen()
    gate, began = asyncio.Event(), asyncio.Event()
    committer = GroupCommitter(store, 30, Clock().monotonic)
    await committer.start()
    ping = store.ping

    async def held() -> None:
        await ping()
        began.set()
        await gate.wait()

    async def fail(_: object) -> None:
        raise UnavailableError("cut", reason="STORE_AWAY")

    store.ping = held  # type: ignore[method-assign]
    first = asyncio.ensure_future(committer.ask(fail))
    await began.wait()
    store.frozen = "a replica"
    others = [asyncio.ensure_future(committer.ask(fail)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert all(isinstance(result, UnavailableError) for result in results)
    assert not committer.is_available
    assert store.num_pings == 2
    assert len(caplog.messages) == 1
    await committer.stop()


async def test_what_is_wrong_with_a_store_is_logged_once_however_often_it_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(MemoryStore):
        num_starts = 0

        async def start(self) -> None:
            self.num_starts += 1
            if self.num_starts == 1:
                raise UnavailableError("not yet", reason="STORE_AWAY")
            if self.num_starts < 4:
                raise ConfigurationError("another's")

    committer = GroupCommitter(Odd(), 30, Clock().monotonic)
    await committer.start()
    await committer.changed.wait()
    assert caplog.messages == [
        "the store is away: not yet",
        "the store cannot be used: another's",
        "the store is back: it can be written",
    ]
    await committer.stop()


async def test_one_write_or_read_that_breaks_the_call_fails_alone() -> None:
    committer = GroupCommitter(Frozen(), 30, Clock().monotonic)
    await committer.start()
    one, bad, other = await committer.write([write("a"), write("broken"), write("b")])
    assert (one, other) == (True, True)
    assert isinstance(bad, UnavailableError)
    found = await asyncio.gather(
        *(committer.read(key_of(name)) for name in ("a", "broken", "none")), return_exceptions=True
    )
    assert [type(each).__name__ for each in found] == ["Entry", "ValueError", "NoneType"]
    assert committer.is_available
    await committer.stop()


class HalfWay(MemoryStore):
    """Breaks in the middle of a group."""

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        made = await super().write(writes)
        if len(writes) > 1:
            raise ValueError("broken")
        return made


async def test_what_was_made_before_the_call_broke_is_found() -> None:
    committer = GroupCommitter(HalfWay(), 30, Clock().monotonic)
    await committer.start()
    assert await committer.write([write("a"), write("b"), write("b", b"other", b"2")]) == [True, True, False]
    await committer.stop()


@dataclass
class Gated(MemoryStore):
    """Reads wait at a gate; ``calls`` are the numbers of ids of each, ``most`` how many were under way at once."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[int] = field(default_factory=list)
    num_now: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    async def read(self, keys: Sequence[SessionKey]) -> list[Entry | None]:
        self.calls.append(len(keys))
        await self._pass()
        return await super().read(keys)

    async def read_summaries(self, keys: Sequence[SessionKey]) -> list[Stored | None]:
        self.calls.append(len(keys))
        await self._pass()
        return await super().read_summaries(keys)

    async def due(self, now: float, limit: int) -> list[SessionKey]:
        await self._pass()
        return []

    async def _pass(self) -> None:
        self.num_now += 1
        self.most = max(self.most, self.num_now)
        await self.gate.wait()
        self.num_now -= 1


async def test_many_reads_are_few_bounded_calls_and_no_write_waits_behind_them() -> None:
    store = Gated()
    committer = GroupCommitter(store, 30, Clock().monotonic)
    await committer.start()
    reads = [asyncio.ensure_future(committer.read(key_of(f"s{number % 300}"))) for number in range(1000)]
    keys = [key_of(f"s{number % 300}") for number in range(500)]
    summaries = [asyncio.ensure_future(committer.read_summary(key)) for key in keys]
    many = asyncio.ensure_future(committer.read_summaries(keys))
    questions = [asyncio.ensure_future(committer.ask(lambda store: store.due(0.0, 1))) for _ in range(100)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert await committer.write([write("a")]) == [True]
    assert store.num_now == 4
    store.gate.set()
    assert await asyncio.gather(*reads, *summaries) == [None] * 1500
    assert await many == [None] * 500
    await asyncio.gather(*questions)
    assert sorted(set(store.calls)) == [12, 32, 44, 256]
    assert sum(store.calls) == 600
    assert store.most == 4
    await committer.stop()


async def test_a_group_of_writes_is_bounded(committer: GroupCommitter, store: Slow) -> None:
    store.gate.set()
    many = [asyncio.ensure_future(committer.write([write(f"{tick}-{row}") for row in range(400)])) for tick in range(5)]
    large = [
        asyncio.ensure_future(committer.write([Write(key_of(f"large{number}"), None, b"1", b"", bytes(9 << 20))]))
        for number in range(3)
    ]
    assert all(made is True for results in await asyncio.gather(*many, *large) for made in results)
    assert [len(group) for group in store.groups] == [800, 800, 401, 1, 1]


async def test_a_store_that_does_not_answer_in_time_is_away_until_it_does() -> None:
    store = Slow()
    committer = GroupCommitter(store, 0.01, Clock().monotonic)
    await committer.start()

    async def hang(keys: Sequence[SessionKey]) -> list[None]:
        await asyncio.Event().wait()
        raise AssertionError

    read, store.read_summaries = store.read_summaries, hang  # type: ignore[method-assign, assignment]
    (told,) = await committer.write([write("a")])
    assert isinstance(told, UnavailableError)
    assert (told.reason, told.retry_after, committer.is_available) == ("STORE_AWAY", 1.0, False)
    with pytest.raises(UnavailableError):
        await committer.read(key_of("a"))
    committer.changed.clear()
    store.read_summaries = read  # type: ignore[method-assign]
    await committer.changed.wait()
    assert committer.is_available
    assert await committer.read(key_of("a")) is None
    await committer.stop()


async def test_a_store_that_is_not_there_at_the_start_is_waited_for() -> None:
    class Late(MemoryStore):
        num_starts = 0

        async def start(self) -> None:
            self.num_starts += 1
            if self.num_starts == 1:
                raise UnavailableError("not yet", reason="STORE_AWAY")

    committer = GroupCommitter(Late(), 30, Clock().monotonic)
    await committer.start()
    assert not committer.is_available
    await committer.changed.wait()
    assert await committer.write([write("a")]) == [True]
    await committer.stop()
