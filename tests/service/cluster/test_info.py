"""Whose a session is, by its id alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.serving import serving, write_bundles
from tidegate.api import SessionRequest
from tidegate.cluster.info import WorkerInfo


def workers(count: int, replica: str = "r") -> list[WorkerInfo]:
    return [WorkerInfo(replica, number, count, Path()) for number in range(count)]


@pytest.mark.parametrize("replica", ["r", "a-1", "under_score"])
async def test_an_id_that_a_worker_made_is_its_own(tmp_path: Path, replica: str) -> None:
    write_bundles(tmp_path)
    for worker in workers(3, replica):
        async with serving(tmp_path, replica=worker.name) as service:
            info = await service.open_session(SessionRequest("tiny-lstm"))
        assert {other.owner(info.id) for other in workers(3, replica)} == {worker.rank}


@given(st.from_regex(r"[A-Za-z0-9._-][A-Za-z0-9._~-]{0,127}", fullmatch=True), st.integers(1, 9))
def test_all_workers_agree_on_a_chosen_id(session: str, count: int) -> None:
    owners = {worker.owner(session) for worker in workers(count)}
    assert len(owners) == 1
    assert owners <= set(range(count))


def test_chosen_ids_are_spread() -> None:
    assert {workers(4)[0].owner(f"client-{i}") for i in range(100)} == {0, 1, 2, 3}


@pytest.mark.parametrize("session", ["e~other-0~x", "e~r-7~x", "e~r-x~x", "e~r~x", "e~", "e~r-²~x", "e~r-1-0~x"])
def test_an_id_of_nobody_here_is_refused_by_who_is_asked(session: str) -> None:
    assert [worker.owner(session) for worker in workers(3)] == [0, 1, 2]
