"""The sessions that are held here: recent use, expiry and the memory of endings, with time as an argument."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from tests.service.engine.house import house
from tidegate.api import SessionRequest
from tidegate.engine.lifecycle import TRANSITIONS, WHY, Event, Phase
from tidegate.engine.session import DurableSession, Session
from tidegate.sessions.endings import REMEMBERED_SECONDS
from tidegate.sessions.residents import Residents
from tidegate.slices import at_once


class Model:
    """What a session's leaving touches of its model."""

    def __init__(self, release: Callable[[Session], None] = lambda _: None) -> None:
        self.num_sessions = 0
        self.engine = SimpleNamespace(release=release)


def session(name: str, now: float = 0.0, ttl: float | None = None, idle: float | None = None) -> Session:
    return Session(
        name,
        Model(),
        SessionRequest("m"),
        seed=0,
        created_at=0.0,
        used_at=now,
        ttl_at=None if ttl is None else now + ttl,
        idle_seconds=idle,
    )


def table(*sessions: Session) -> Residents:
    full = Residents()
    for one in sessions:
        full.add(one)
    return full


def expire(full: Residents, now: float) -> list[tuple[str, Event]]:
    over = full.expired(now, 1000)
    for one, event in over:
        full.end(one, event, now)
    return [(one.id, event) for one, event in over]


def test_every_phase_but_open_has_its_words_and_stays_as_it_is() -> None:
    assert set(WHY) == set(Phase) - {Phase.OPEN}
    assert {after for (before, _), after in TRANSITIONS.items() if before is Phase.OPEN} == set(WHY)
    assert all(after is before for (before, _), after in TRANSITIONS.items() if before is not Phase.OPEN)


def test_time_to_live_ends_a_session_however_much_it_is_used() -> None:
    one = session("a", ttl=10, idle=100)
    full = table(one)
    full.touch(one, 9.0)
    assert expire(full, 9.9) == []
    assert expire(full, 10.0) == [("a", Event.OUTLIVE)]
    assert one.phase is Phase.EXPIRED


def test_idleness_is_counted_from_the_last_use() -> None:
    one = session("a", idle=10)
    full = table(one)
    full.touch(one, 9.0)
    assert expire(full, 18.9) == []
    assert expire(full, 19.0) == [("a", Event.IDLE)]
    assert one.phase is Phase.IDLE


def test_a_session_without_limits_never_expires() -> None:
    assert expire(table(session("a")), 1e12) == []


async def test_work_in_hand_is_finished_first() -> None:
    async with house() as it:
        one = it.open()
        one.model, one.ttl_at = Model(it.engine.release), 5.0
        full = table(one)
        reply = it.step(one, "abc")
        assert expire(full, 5.0) == []
        await reply
        assert one.overdue(5.5) is Event.OUTLIVE
        assert expire(full, 6.0) == [("s0", Event.OUTLIVE)]


def test_an_id_that_is_opened_anew_expires_once_at_its_new_time() -> None:
    first, second = session("a", idle=10), session("a", now=5.0, idle=10)
    full = table(first)
    full.end(first, Event.CLOSE, 5.0)
    full.add(second)
    assert expire(full, 10.0) == []
    assert expire(full, 15.0) == [("a", Event.IDLE)]
    assert expire(full, 99.0) == []


def test_sessions_that_were_closed_early_do_not_hide_those_that_are_due() -> None:
    full = table(session("last", idle=50))
    for number in range(5000):
        one = session(f"s{number}", idle=1000)
        full.add(one)
        full.end(one, Event.CLOSE, 1.0)
    assert expire(full, 50.0) == [("last", Event.IDLE)]
    assert full.num_ended == {"SESSION_CLOSED": 5000, "SESSION_IDLE": 1}


def test_endings_are_remembered_for_an_hour() -> None:
    one, other = session("a"), session("b")
    full = table(one, other)
    full.end(one, Event.EVICT, 0.0)
    assert full.find_ending("a", REMEMBERED_SECONDS - 1.0) is Phase.EVICTED
    assert full.find_ending("a", REMEMBERED_SECONDS) is None
    full.end(other, Event.CLOSE, REMEMBERED_SECONDS)
    assert full.find_ending("a", 1.0) is None
    assert full.find_ending("b", REMEMBERED_SECONDS + 1.0) is Phase.CLOSED


def test_an_id_may_be_used_again_after_its_session_ended() -> None:
    full = table(one := session("a"))
    full.end(one, Event.CLOSE, 0.0)
    full.add(again := session("a"))
    assert full.find("a") is again
    assert full.find_ending("a", 1.0) is None


def test_the_least_recently_used_goes_first_and_the_recently_used_not_at_all() -> None:
    old, older, new = session("old", 1.0), session("older", 0.0), session("new", 50.0)
    full = table(older, old, new)
    assert full.find_evictable(60.0, 20.0) is older
    full.touch(older, 55.0)
    assert full.find_evictable(60.0, 20.0) is old
    assert full.find_evictable(60.0, 60.0) is None
    assert table().find_evictable(0.0, 0.0) is None


def test_sessions_that_step_together_are_the_most_recently_used() -> None:
    one, other, idle = session("one", 0.0), session("other", 0.0), session("idle", 10.0)
    full = table(one, other, idle)
    full.touch_all([one, other], 55.0)
    assert full.find_evictable(60.0, 20.0) is idle
    assert (one.used_at, other.used_at) == (55.0, 55.0)
    full.end(idle, Event.EVICT, 60.0)
    assert full.find_evictable(80.0, 20.0) is one


async def test_a_session_with_work_in_hand_is_not_evicted() -> None:
    async with house() as it:
        busy, free = it.open(), it.open()
        busy.model = free.model = Model()
        full = table(busy, free)
        reply = it.step(busy, "abc")
        assert full.find_evictable(100.0, 10.0) is free
        await reply
        it.engine.release(busy)


@given(
    names=st.sets(st.text("abc", min_size=1, max_size=4), max_size=20),
    limit=st.integers(1, 7),
    gone=st.integers(0, 20),
)
def test_pages_hold_every_session_once_by_rising_id_also_while_sessions_go(
    names: set[str], limit: int, gone: int
) -> None:
    full = table(*(session(name) for name in names))
    found: list[str] = []
    token = ""
    while True:
        page, token = at_once(full.page(limit, token))
        assert len(page) <= limit
        found += [one.id for one in page]
        if not token:
            break
        if gone and (victim := full.find(found[-1])) is not None:
            full.end(victim, Event.CLOSE, 0.0)
            gone -= 1
    assert found == sorted(names)


def test_a_page_of_many_is_found_in_slices_while_sessions_come_and_go() -> None:
    names = [f"{name:05}" for name in range(10_000)]
    full = table(*(session(name) for name in reversed(names)))
    paging = full.page(3, "00001")
    next(paging)
    gone = full.find("00002")
    assert gone is not None
    full.end(gone, Event.CLOSE, 0.0)
    full.add(session("new"))
    num_slices = 1
    while True:
        try:
            next(paging)
        except StopIteration as done:
            page, token = done.value
            break
        num_slices += 1
    assert num_slices > 3
    assert ([one.id for one in page], token) == (["00003", "00004"], "00004")


def test_so_many_are_over_at_a_time_and_the_others_after_them() -> None:
    full = table(*(session(name, ttl=10) for name in "abcde"))
    seen = []
    while over := full.expired(10.0, 2):
        for one, event in over:
            full.end(one, event, 10.0)
        seen.append([one.id for one, _ in over])
    assert seen == [["a", "b"], ["c", "d"], ["e"]]


def copy(name: str) -> DurableSession:
    return DurableSession(name, Model(), SessionRequest("m"), seed=0, created_at=0.0, used_at=0.0)


def test_a_copy_leaves_before_any_ephemeral_session_however_lately_it_was_used() -> None:
    idle, older, newer = session("idle"), copy("older"), copy("newer")
    full = table(idle, older, newer)
    full.touch(older, 50.0)
    assert full.find_evictable(60.0, 20.0) is newer
    newer.is_reading = True
    assert full.find_evictable(60.0, 20.0) is older
    full.drop_copy(older)
    assert full.find_evictable(60.0, 20.0) is idle
    assert (len(full), full.num_copies, older.model.num_sessions, newer.model.num_sessions) == (2, 1, 0, 1)


def test_a_copy_stands_beside_an_ephemeral_session_of_its_id_and_leaves_alone() -> None:
    one, other = session("a"), copy("a")
    full = table(one, other)
    assert (full.find("a"), full.find_copy("a")) == (one, other)
    full.remove_copy(other)
    full.remove_copy(other)
    assert (full.find("a"), full.find_copy("a"), other.model.num_sessions) == (one, None, 0)
