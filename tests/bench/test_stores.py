from __future__ import annotations

import asyncio
import time

import pytest

from bench import report
from bench.client import Figures, parse
from bench.measure import Goal, Plan, Rounds
from bench.processes import server
from bench.sessions import step_once
from bench.stores import million, moving, stepping
from bench.stores.filling import KEPT, POSITION, fill, made_by_server, put_overdue, wait_expired
from bench.stores.million import Cost
from bench.stores.moving import Moves
from bench.stores.places import MissingError, Place, memory, redis, sqlite
from bench.stores.stepping import BESIDE, STREAM
from tests.bench.test_figures import LINE
from tests.programs import require
from tidegate.sessions.ids import DEFAULT_TENANT

GOAL = Goal("≥ 0.7 of ephemeral", 0.7)


def figures(rate: float) -> Figures:
    return parse(LINE | {"steps_per_s": rate})


STEPS = Rounds(
    {
        "ephemeral": [figures(100), figures(200)],
        "sqlite": [figures(80), figures(140)],
        "sqlite-full": [figures(10), figures(20)],
    }
)


def test_a_store_is_held_against_ephemeral_sessions() -> None:
    row = stepping.row_of("sqlite", STREAM, GOAL, STEPS, {"num_rounds": 2})
    assert (row.row, row.met) == ("store-sqlite-stream-64", True)
    assert row.ratio == pytest.approx(0.75)
    assert row.details["num_rounds"] == 2
    assert report.is_of_others(row)


def test_a_store_for_comparison_meets_and_misses_nothing() -> None:
    row = stepping.row_of("sqlite-full", STREAM, BESIDE, STEPS, {})
    assert (row.met, row.share) == (None, None)
    assert row.ratio == pytest.approx(0.1)
    assert row.note


def test_moving_costs_what_the_first_step_takes_beyond_one_at_home() -> None:
    moves = Moves(home=[1.0, 2.0, 1.0], moved=[4.0, 4.0, 9.0], back=[2.0, 3.0, 9.0])
    row = moving.row_of("sqlite", Rounds({"moves": [moves, moves]}))
    assert (row.value, row.met) == (3.0, True)
    assert row.details["added_back_at_an_old_copy_ms"] == 1.0


def test_a_million_may_cost_a_fifth_more() -> None:
    costs = Rounds({"many": [Cost(10, 40), Cost(13, 40)], "few": [Cost(10, 20), Cost(10, 20)]})
    row = million.row_of("store-million-sqlite-open", 1_000_000, costs, Plan())
    assert (row.met, row.details["wall_ratio"]) == (True, 2.0)
    assert row.ratio == pytest.approx(1.15)


def test_stored_sessions_are_like_those_a_server_left() -> None:
    with sqlite() as place:
        filled = fill(place, 30, most_seconds=60)
        assert filled.num_stored == len(set(filled.ids)) == 30 < KEPT
        with server(*place.flags) as running:
            step_once(running, filled.ids, POSITION)
            put_overdue(place, made_by_server(place), 10)
            wait_expired(place)
        assert _num_shown(place) == 30 + 2  # and those that the records were copied from


def test_no_time_to_fill_stores_nothing() -> None:
    with sqlite() as place:
        assert fill(place, 30, most_seconds=0).num_stored == 0


def test_ephemeral_sessions_are_in_no_store() -> None:
    with memory() as place, pytest.raises(ValueError, match="ephemeral"):
        place.store()


def test_a_redis_that_is_missing_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="apt-get install redis-server"), redis("always"):
        pass


def test_redis_keeps_sessions_while_the_block_runs() -> None:
    require("redis-server")
    with redis("always") as place:
        assert fill(place, 3, most_seconds=60).num_stored == 3
        assert len(place.pids) == 1


def test_the_cpu_time_of_a_process_rises() -> None:
    with sqlite() as place, server(*place.flags) as running:
        assert million.cpu_seconds([running.pid]) > 0


def test_the_disk_is_timed() -> None:
    started = time.perf_counter()
    assert 0 < stepping.sync_seconds(1, tries=1) < time.perf_counter() - started


def _num_shown(place: Place) -> int:
    async def count() -> int:
        store = place.store()
        await store.start()
        try:
            return len(await store.page(DEFAULT_TENANT, 1000, ""))
        finally:
            await store.stop()

    return asyncio.run(count())
