from __future__ import annotations

import pytest

from bench.measure import Goal, Plan, Rounds, Spread, absolute, against, failed, interleaved, skipped, spread

LEAST = Goal("≥ 0.5", 0.5)
MOST = Goal("≤ 2", 2.0, is_least=False)


def test_measurements_run_in_turns() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    rounds = interleaved(2, {"a": lambda: measure("a"), "b": lambda: measure("b")})
    assert order == ["a", "b", "a", "b"]
    assert rounds.spread("b", float) == Spread(3, 2, 4)


def test_a_ratio_is_taken_in_each_round_before_the_median() -> None:
    rounds = Rounds({"fast": [100.0, 10.0, 30.0], "slow": [50.0, 10.0, 10.0]})
    assert rounds.ratio("fast", "slow", float) == Spread(2, 1, 3)
    assert rounds.median("fast", float) == 30


def test_rounds_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Rounds({"a": [1.0], "b": [1.0, 2.0]}).ratio("b", "a", float)


@pytest.mark.parametrize(
    ("goal", "figure", "is_met", "share"),
    [
        (LEAST, 0.5, True, 1.0),
        (LEAST, 0.25, False, 0.5),
        (MOST, 2.0, True, 1.0),
        (MOST, 4.0, False, 0.5),
        (MOST, 0.0, True, 100.0),
    ],
)
def test_a_goal_says_whether_and_how_far(goal: Goal, figure: float, is_met: bool, share: float) -> None:
    assert goal.is_met(figure) is is_met
    assert goal.share(figure) == share


def test_a_row_holds_one_measurement_against_another() -> None:
    rounds = Rounds({"server": [40.0, 60.0, 50.0], "floor": [100.0, 100.0, 100.0]})
    row = against("steps", "steps/s", LEAST, rounds, ("server", "floor"), float, sessions=64)
    assert (row.value, row.floor, row.ratio, row.spread) == (50, 100, 0.5, (0.4, 0.6))
    assert row.met
    assert row.details == {"sessions": 64}


def test_an_absolute_row_is_judged_by_its_median() -> None:
    row = absolute("start", "s", MOST, spread([1.0, 9.0, 1.5]))
    assert row.met
    assert (row.value, row.spread, row.floor) == (1.5, (1.0, 9.0), None)


def test_what_was_not_measured_is_neither_met_nor_missed_and_what_failed_is_missed() -> None:
    assert skipped("int8", "steps/s", "≥ 1.8", "no bundle").met is None
    assert failed("int8", "it crashed").met is False


def test_a_rows_flags_are_split_as_a_shell_does() -> None:
    plan = Plan(flags={"unary": "--front native --replica 'a b'"})
    assert plan.flags_of("unary") == ["--front", "native", "--replica", "a b"]
    assert plan.flags_of("stream") == []
