"""A slice of the search, and that its truth is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.search.generate import make_case
from tests.search.judge import GOOD, Outcome, judge
from tests.search.oracle import Oracle
from tests.search.traps import TRAPS


def test_a_seed_always_gives_the_same_graph() -> None:
    for seed in range(10):
        first, again = make_case(seed), make_case(seed)
        assert first.model.SerializeToString(deterministic=True) == again.model.SerializeToString(deterministic=True)
        assert (first.data, first.states, first.outputs, first.kind) == (
            again.data, again.states, again.outputs, again.kind,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_what_is_said_to_stream_does(seed: int) -> None:
    case = make_case(seed, "time")
    oracle = Oracle(case)
    steps = 30
    row = oracle.sequence(seed, steps)
    assert oracle.streams(row, [1, 1, 4, 9, 15])


@pytest.mark.parametrize("name", sorted(set(TRAPS) - {"noise", "dropout", "growing", "shortened"}))
def test_a_trap_keeps_its_graph_from_streaming(name: str) -> None:
    """Of some graphs with it: large values, which some wait for, are not in every sequence."""
    cases = [make_case(seed, "trap", name) for seed in range(6)]
    found = []
    for case in cases:
        oracle, steps = Oracle(case), case.num_steps
        row = oracle.sequence(case.seed, steps)
        cuts = np.diff([*range(25), case.reach + 28, steps]).tolist()
        found.append(oracle.streams(row, [int(cut) for cut in cuts if cut > 0]))
    assert found.count(False) > len(found) / 2


SLICE = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18, 19, 20, 21, 23, 25, 28, 30, 31, 33, 34, 35, 36, 37, 38, 39,
    43, 44, 46, 50, 51, 62, 64, 68, 69,
)  # fmt: skip
"""Seeds of graphs that import is right about, the commonest kinds among them."""


@pytest.mark.parametrize("seed", SLICE)
def test_import_is_right_about_random_graphs(seed: int, tmp_path: Path) -> None:
    verdict = judge(make_case(seed), tmp_path)
    assert verdict.outcome in GOOD, (verdict.told, verdict.options, verdict.first)


ASKED = (("frame", 101600), ("frame", 710046), ("time", 720012))
"""Graphs with a state that was taken for data: what a run leaves for the next one, no output shows."""


@pytest.mark.parametrize(("kind", "seed"), ASKED)
def test_what_nothing_shows_to_be_data_is_asked_for(kind: str, seed: int, tmp_path: Path) -> None:
    assert judge(make_case(seed, kind), tmp_path).outcome is Outcome.ASKED


@pytest.mark.parametrize("trap", ["positions", "table", "single", "late_positions"])
def test_a_free_axis_beside_a_counter_is_no_batch_that_hides_a_trap(trap: str, tmp_path: Path) -> None:
    assert judge(make_case(7001, "trap", trap), tmp_path).outcome is Outcome.REFUSED


def test_a_state_is_not_made_data_by_a_wrong_guess_of_the_axes(tmp_path: Path) -> None:
    assert judge(make_case(735103, "frame"), tmp_path).outcome in GOOD


@pytest.mark.parametrize("seed", [300322, 300695, 400812])
def test_a_free_axis_that_was_taken_for_one_step_is_tried_as_the_time(seed: int, tmp_path: Path) -> None:
    """Positions in a run, a branch by the number of steps, and one by the data, each read as one step a run."""
    assert judge(make_case(seed), tmp_path).outcome is Outcome.REFUSED


def test_names_of_data_do_not_hide_a_line_of_delays(tmp_path: Path) -> None:
    assert judge(make_case(400925), tmp_path).outcome is Outcome.ASKED
