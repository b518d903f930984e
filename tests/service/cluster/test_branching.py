"""Branching is the same, whichever worker is asked, and wherever the branches belong."""

from __future__ import annotations

from itertools import count, islice

import pytest

from tests.service.cluster.conftest import Pair
from tests.service.fake_core import FakeCore
from tidegate.api import CheckpointInfo, Input, RestoreRequest
from tidegate.errors import FailedPreconditionError, InvalidInputError, NotFoundError
from tidegate.sessions.snapshot import Body, encode_snapshot, fork_snapshot

SNAPSHOT = encode_snapshot(Body(model="echo", version="2", position=5))


def chosen_ids(pair: Pair, number: int, num_ids: int = 1) -> list[str]:
    """Ids that a client might choose and that belong to worker ``number``."""
    names = (f"mine-{i}" for i in count())
    return list(islice((name for name in names if pair.worker.owner(name) == number), num_ids))


def add(service: FakeCore, session: str, *, durable: bool = False, position: int = 0) -> None:
    service.add_sessions(session)
    service.sessions[session] = service.sessions[session]._replace(durable=durable, position=position)


@pytest.mark.parametrize("number", [0, 1])
async def test_each_call_reaches_the_owner(pair: Pair, number: int) -> None:
    home, other = ((pair.near, pair.far), (pair.far, pair.near))[number]
    session = pair.id_of(number)
    home.add_sessions(session)
    await pair.face.step(session, Input(text="abc"))
    assert await pair.face.checkpoint_session(session, "here") == CheckpointInfo("here", 3)
    assert (await pair.face.checkpoint_session(session)).checkpoint == "c1"
    await pair.face.step(session, Input(text="abc"))
    assert await pair.face.rewind_session(session, "here") == home.sessions[session]
    assert (await pair.face.upgrade_session(session, "1")).version == "1"
    assert (await pair.face.upgrade_session(session)).version == "2"
    assert await pair.face.snapshot_session(session) == encode_snapshot(Body(model="echo", version="2", position=3))
    assert len(await pair.face.fork_session(session, count=2)) == 2
    assert len(await pair.face.fork_session(session)) == 1
    assert home.branched == [
        ("checkpoint", session, "here"),
        ("checkpoint", session, None),
        ("rewind", session, "here"),
        ("upgrade", session, "1"),
        ("upgrade", session, None),
        ("snapshot", session),
        ("fork", session, None, 2),
        ("fork", session, None, None),
    ]
    assert other.branched == []


async def test_an_error_far_away_keeps_its_reason(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    with pytest.raises(NotFoundError) as missing:
        await pair.face.rewind_session(pair.id_of(1), "never")
    assert missing.value.reason == "UNKNOWN_CHECKPOINT"
    pair.far.failures[pair.id_of(1)] = [FailedPreconditionError("differs", reason="LAYOUT_DIFFERS")]
    with pytest.raises(FailedPreconditionError) as refused:
        await pair.face.upgrade_session(pair.id_of(1), "3")
    assert refused.value.reason == "LAYOUT_DIFFERS"


async def test_a_durable_session_of_the_server_s_naming_is_served_where_it_is_asked_for(pair: Pair) -> None:
    for i in range(8):  # of which a hash would give both workers some
        add(pair.near, f"d~{i}", durable=True)
        assert (await pair.face.get_session(f"d~{i}")).durable
        assert (await pair.face.step(f"d~{i}", Input(text="x"))).position == 1
        await pair.face.checkpoint_session(f"d~{i}", "here")
        await pair.face.fork_session(f"d~{i}", count=2)
        await pair.face.close_session(f"d~{i}")
    assert len(pair.near.branched) == 16
    assert (pair.far.steps, pair.far.branched) == ([], [])


@pytest.mark.parametrize("number", [0, 1])
async def test_a_durable_fork_is_made_by_the_owner_of_its_id(pair: Pair, number: int) -> None:
    """The store is the same for both, so either can fork what the other may have opened."""
    for service in (pair.near, pair.far):
        add(service, "d~1", durable=True, position=4)
    ids = chosen_ids(pair, number, 2)
    forks = await pair.face.fork_session("d~1", ids)
    home, other = ((pair.near, pair.far), (pair.far, pair.near))[number]
    assert [(fork.id, fork.position, fork.durable) for fork in forks] == [(id_, 4, True) for id_ in ids]
    assert home.branched == [("fork", "d~1", ids, None)]
    assert (other.branched, other.restored) == ([], [])


@pytest.mark.parametrize("parent", ["d~1", "chosen"])
async def test_durable_forks_of_both_workers_come_in_the_order_of_their_ids(pair: Pair, parent: str) -> None:
    for service in (pair.near, pair.far):
        add(service, parent, durable=True, position=4)
    (a, b), (c,) = chosen_ids(pair, 1, 2), chosen_ids(pair, 0)
    forks = await pair.face.fork_session(parent, [a, c, b])
    assert [fork.id for fork in forks] == [a, c, b]
    assert pair.near.branched == [("fork", parent, [c], None)]
    assert pair.far.branched == [("fork", parent, [a, b], None)]


@pytest.mark.parametrize("number", [0, 1])
async def test_an_ephemeral_fork_lives_with_the_owner_of_its_id(pair: Pair, number: int) -> None:
    """Its state reaches another worker as a snapshot."""
    home, other = ((pair.near, pair.far), (pair.far, pair.near))[number]
    session = pair.id_of(number)
    add(home, session, position=5)
    (here,), (there,) = chosen_ids(pair, number), chosen_ids(pair, 1 - number)
    forks = await pair.face.fork_session(session, [there, here])
    assert [(fork.id, fork.position, fork.durable) for fork in forks] == [(there, 5, False), (here, 5, False)]
    assert set(home.sessions) == {session, here}
    assert set(other.sessions) == {there}
    assert other.restored == [(fork_snapshot(SNAPSHOT, session, there), RestoreRequest(there))]
    for fork in forks:
        assert await pair.face.get_session(fork.id) == fork


@pytest.mark.parametrize("number", [0, 1])
async def test_a_restored_session_lives_with_the_owner_of_its_id(pair: Pair, number: int) -> None:
    home = (pair.near, pair.far)[number]
    wish = RestoreRequest(chosen_ids(pair, number)[0], durable=True, ttl_seconds=60, idle_seconds=1.5)
    info = await pair.face.restore_session(SNAPSHOT, wish)
    assert home.restored == [(SNAPSHOT, wish)]
    assert await pair.face.get_session(info.id) == home.sessions[info.id] == info


async def test_without_an_id_a_session_is_restored_where_it_was_asked_for(pair: Pair) -> None:
    info = await pair.face.restore_session(SNAPSHOT, RestoreRequest())
    assert list(pair.near.sessions) == [info.id]
    assert not pair.far.sessions


async def test_a_lifetime_that_no_message_can_carry_is_refused_here(pair: Pair) -> None:
    wish = RestoreRequest(chosen_ids(pair, 1)[0], ttl_seconds=0)
    pair.near.failures["restore"] = [InvalidInputError("ttl_seconds must be positive", reason="BAD_LIFETIME")]
    with pytest.raises(InvalidInputError):
        await pair.face.restore_session(SNAPSHOT, wish)
    assert pair.far.restored == []


async def test_a_session_that_every_worker_finds_in_the_store_is_listed_once(pair: Pair) -> None:
    for service in (pair.near, pair.far):
        service.add_sessions("a", "d~1", "d~2")
    pair.near.add_sessions("b")
    pair.far.add_sessions("c")
    first = await pair.face.list_sessions(2)
    assert ([session.id for session in first.sessions], first.next_page_token) == (["a", "b"], "b")
    second = await pair.face.list_sessions(2, first.next_page_token)
    assert ([session.id for session in second.sessions], second.next_page_token) == (["c", "d~1"], "d~1")
    last = await pair.face.list_sessions(2, second.next_page_token)
    assert ([session.id for session in last.sessions], last.next_page_token) == (["d~2"], "")


async def test_ids_and_a_count_are_the_owner_s_to_refuse(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    ids = chosen_ids(pair, 0) + chosen_ids(pair, 1)
    await pair.face.fork_session(pair.id_of(1), ids, 2)
    assert pair.far.branched == [("fork", pair.id_of(1), ids, 2)]
    assert pair.near.branched == []
