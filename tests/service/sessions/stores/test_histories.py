"""Compare-and-set over random histories: two stores on one place behave as one dict, one operation at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.sessions.stores.places import Place, after, all_due, first, key, keys, opened, revision
from tidegate.api import SessionKey
from tidegate.sessions.stores.memory import MemoryStore
from tidegate.sessions.stores.store import Due, Store, Write

IDS = ("a", "b", "~")
Operation = Callable[[Store], Awaitable[Any]]

ids = st.sampled_from(IDS)
times = st.none() | st.integers(0, 5).map(float)
attachments = st.dictionaries(st.sampled_from(["x", "y"]), st.none() | st.binary(max_size=3), max_size=2)
# Which revision a write expects: none, or that of the n-th last write that was tried on the session.
expectations = st.none() | st.integers(0, 2)


class History:
    """Operations with revisions that refer to earlier ones."""

    def __init__(self) -> None:
        self._tried: dict[str, list[bytes]] = {id_: [] for id_ in IDS}

    def write(
        self,
        id_: str,
        expected: int | None,
        body: bytes | None,
        due: Due | None,
        is_listed: bool,
        attached: dict[str, bytes | None],
    ) -> Write:
        before, new = self._revision(id_, expected), revision()
        self._tried[id_].append(new)
        return Write(key(id_), before, new, new[-2:] * 5, body and new[-2:] * 20, due, is_listed, attached)

    def delete(self, id_: str, expected: int) -> tuple[SessionKey, bytes]:
        return key(id_), self._revision(id_, expected) or bytes(16)

    def _revision(self, id_: str, expected: int | None) -> bytes | None:
        tried = self._tried[id_]
        return tried[-1 - expected] if expected is not None and expected < len(tried) else None


bodies = st.sampled_from([b"a body", None])
writes = st.tuples(ids, expectations, bodies, st.none() | times.map(Due), st.booleans(), attachments)
steps: st.SearchStrategy[Any] = st.tuples(
    ids, st.integers(0, 1), st.just(b"a body"), st.none(), st.just(True), st.just({})
)
groups = st.lists(writes | steps, min_size=1, max_size=3, unique_by=lambda write: write[0])
choices = st.one_of(
    groups.map(lambda group: ("write", group)),
    groups.map(lambda group: ("write", group)),
    st.tuples(ids, st.integers(0, 1)).map(lambda deleted: ("delete", deleted)),
    st.tuples(ids.map(key), times).map(lambda postponed: ("postpone", postponed)),
)
histories = st.lists(st.tuples(st.booleans(), choices), max_size=25)


def operation(history: History, kind: str, arguments: Any) -> Operation:
    match kind:
        case "write":
            group = [history.write(*one) for one in arguments]
            return lambda store: store.write(group)
        case "delete":
            deleted = history.delete(*arguments)
            return lambda store: store.delete(*deleted)
        case _:
            return lambda store: store.postpone(*arguments)


async def everything(store: Store) -> list[Any]:
    return [
        await store.read(keys(IDS)),
        await store.read_summaries(keys(IDS)),
        [await store.read_attachment(key(id_), name) for id_ in IDS for name in "xy"],
        await all_due(store, 3.0),
        await store.page("t", 9, ""),
    ]


async def follow(place: Place, chosen: list[tuple[bool, tuple[str, Any]]]) -> None:
    place.clear()
    model, history = MemoryStore(), History()
    async with opened(place.store()) as one, opened(place.store()) as two:
        for is_two, (kind, arguments) in chosen:
            run = operation(history, kind, arguments)
            ours = await run(two if is_two else one)
            assert ours == await run(model)
            assert await everything(one if is_two else two) == await everything(model)
        assert await all_due(one, 9.0) == await all_due(model, 9.0)


@given(histories)
@settings(max_examples=60)
def test_two_stores_behave_as_one_dict(place: Place, chosen: list[tuple[bool, tuple[str, Any]]]) -> None:
    asyncio.run(follow(place, chosen))


async def count_up(store: Store, counter: SessionKey, times_: int) -> list[tuple[bytes, bytes]]:
    """Add one to a stored number so many times, against everybody else; return (expected, made) of each win."""
    wins: list[tuple[bytes, bytes]] = []
    while len(wins) < times_:
        (entry,) = await store.read([counter])
        assert entry is not None
        number = int.from_bytes(entry.body) + 1
        step = Write(counter, entry.revision, revision(), b"", number.to_bytes(8))
        if await store.write([step]) == [True]:
            wins.append((entry.revision, step.revision))
    return wins


async def test_racing_writers_win_each_revision_once(store: Store, other: Store) -> None:
    opening = first("s", bytes(8))
    await store.write([opening])
    racers = [count_up(one, opening.key, 40) for one in (store, other, store, other)]
    wins = list(itertools.chain(*await asyncio.gather(*racers)))
    (entry,) = await store.read([opening.key])
    assert entry is not None
    assert int.from_bytes(entry.body) == len(wins) == 160

    # The wins are links of one chain from the opening to what is stored.
    links = dict(wins)
    assert len(links) == len(wins)
    last = opening.revision
    for _ in wins:
        last = links[last]
    assert last == entry.revision


async def test_of_racing_groups_every_session_has_one_winner(store: Store, other: Store) -> None:
    openings = [first(f"s{number}") for number in range(20)]
    await store.write(openings)
    groups_ = [[after(opening, bytes([racer])) for opening in openings] for racer in range(6)]
    stores = [store, other] * 3
    made = await asyncio.gather(*(one.write(group) for one, group in zip(stores, groups_, strict=True)))
    winners = [[racer for racer in range(6) if made[racer][number]] for number in range(20)]
    assert all(len(won) == 1 for won in winners)
    entries = await other.read([opening.key for opening in openings])
    assert [entry.body for entry in entries if entry] == [bytes(won) for won in winners]


async def test_of_racing_openings_and_deletions_one_wins(store: Store, other: Store) -> None:
    openings = [first("s", bytes([number])) for number in range(8)]
    made = await asyncio.gather(
        *(one.write([opening]) for one, opening in zip([store, other] * 4, openings, strict=True))
    )
    assert sum(won for (won,) in made) == 1
    winner = openings[made.index([True])]
    deleted = await asyncio.gather(*(one.delete(winner.key, winner.revision) for one in [store, other] * 4))
    assert sum(deleted) == 1
