"""The checker itself: what a right server may answer passes, and each kind of wrong is caught and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from tests.chaos.history import (
    Asked,
    At,
    Conflict,
    Failure,
    History,
    Keep,
    Read,
    Reply,
    Rewind,
    Step,
    Told,
    read,
    write,
)
from tests.chaos.offline import Sequence, empty_sequence
from tests.chaos.verify import Verdict, verify

A, B, C = (5, 6), (7,), (8, 9, 10)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Sequence:
    return empty_sequence(write_tiny_bundle(tmp_path_factory.mktemp("bundles")))


def said(empty: Sequence, *chunks: tuple[int, ...], position: int | None = None) -> Reply:
    """The right answer to the last of ``chunks``, which were all consumed."""
    consumed = empty
    for chunk in chunks:
        consumed = consumed.then(chunk)
    reply = consumed.reply(len(chunks[-1]))
    return reply if position is None else reply._replace(position=position)


def one_after_another(*pairs: tuple[Asked, Told | None]) -> History:
    history = History()
    for asked, told in pairs:
        operation = history.begin("s", "client", asked)
        if told is None:
            history.lose(operation, "UNAVAILABLE")
        else:
            history.end(operation, told)
    return history


def verdict(history: History, empty: Sequence) -> Verdict:
    return verify(history.operations, empty)


def test_a_history_without_faults_passes(empty: Sequence) -> None:
    history = one_after_another(
        (Step(0, A), said(empty, A)), (Step(2, B), said(empty, A, B)), (Read(), At(3)), (Step(9, C), Conflict(3))
    )
    assert verdict(history, empty) == Verdict(num_acknowledged=3)


@pytest.mark.parametrize("is_applied", [True, False])
def test_an_unknown_outcome_may_be_either(empty: Sequence, is_applied: bool) -> None:
    following = (Step(2, B), said(empty, A, B)) if is_applied else (Step(0, B), said(empty, B))
    assert verdict(one_after_another((Step(0, A), None), following), empty).problem is None


def test_what_was_not_known_may_happen_late_but_once(empty: Sequence) -> None:
    """A paused replica wakes up with a request that its client has given up."""
    late: list[tuple[Asked, Told | None]] = [(Step(0, A), None), (Read(), At(0)), (Read(), At(2))]
    assert verdict(one_after_another(*late), empty).problem is None
    assert verdict(one_after_another(*late, (Read(), At(4))), empty).num_twice == 2


def test_a_repeat_is_answered_bit_for_bit(empty: Sequence) -> None:
    told = said(empty, A)
    assert verdict(one_after_another((Step(0, A), told), (Step(0, A), told)), empty) == Verdict(2)
    close = told._replace(surprise=told.surprise * (1 + 1e-6))
    assert verdict(one_after_another((Step(0, A), told), (Step(0, A), close)), empty).problem
    # The first answer to arrive need not be the first that was sent.
    assert verdict(one_after_another((Step(0, A), None), (Step(0, A), close)), empty) == Verdict(2)


def test_two_writers_at_once_are_explained_in_the_order_that_fits(empty: Sequence) -> None:
    history = History()
    one, other = history.begin("s", "one", Step(0, A)), history.begin("s", "other", Step(0, B))
    history.end(one, Conflict(1))
    history.end(other, said(empty, B))
    assert verdict(history, empty) == Verdict(1)


def test_two_writers_that_both_win_are_caught(empty: Sequence) -> None:
    history = History()
    one, other = history.begin("s", "one", Step(0, A)), history.begin("s", "other", Step(0, B))
    history.end(one, said(empty, A))
    history.end(other, said(empty, B))
    assert verdict(history, empty).problem


def test_order_in_time_is_kept(empty: Sequence) -> None:
    """An answer from before what was told already: a stale read."""
    history = one_after_another((Step(0, A), said(empty, A)), (Step(2, B), said(empty, A, B)), (Read(), At(2)))
    assert verdict(history, empty)[:3] == (3, 1, 0)


def test_a_lost_step_is_caught_by_the_position(empty: Sequence) -> None:
    history = one_after_another(
        (Step(0, A), said(empty, A)), (Step(2, B), said(empty, A, B)), (Step(3, C), Conflict(2))
    )
    assert verdict(history, empty)[:3] == (3, 1, 0)


def test_a_lost_step_is_caught_by_what_the_model_says(empty: Sequence) -> None:
    """The position is kept and counts on, the state is of one chunk before."""
    history = one_after_another(
        (Step(0, A), said(empty, A)), (Step(2, B), said(empty, A, B)), (Step(3, C), said(empty, A, C, position=6))
    )
    assert verdict(history, empty)[:3] == (3, 1, 0)


def test_a_step_applied_twice_is_caught_by_the_position(empty: Sequence) -> None:
    history = one_after_another((Step(0, A), None), (Step(0, A), said(empty, A)), (Read(), At(4)))
    assert verdict(history, empty)[:3] == (2, 0, 2)


def test_a_step_applied_twice_is_caught_by_what_the_model_says(empty: Sequence) -> None:
    history = one_after_another((Step(0, A), None), (Step(0, A), said(empty, A, A, position=2)))
    assert verdict(history, empty)[:3] == (0, 0, 2)
    history = one_after_another((Step(0, A), said(empty, A)), (Step(2, B), said(empty, A, A, B, position=3)))
    assert verdict(history, empty)[:3] == (2, 0, 2)


def test_rewinding_goes_back_and_forgets_the_last_reply(empty: Sequence) -> None:
    history = one_after_another(
        (Step(0, A), said(empty, A)),
        (Rewind("here"), Failure("UNKNOWN_CHECKPOINT")),
        (Keep("here"), At(2)),
        (Step(2, B), said(empty, A, B)),
        (Rewind("here"), At(2)),
        (Step(0, A), Conflict(2)),
        (Step(2, C), said(empty, A, C)),
    )
    assert verdict(history, empty) == Verdict(6)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_stale_state_that_passes_after_a_rewind_is_caught(empty: Sequence, is_told: bool) -> None:
    """The position is right again, so only what the model says tells it."""
    history = one_after_another(
        (Step(0, A), said(empty, A)),
        (Keep("here"), At(2)),
        (Step(2, B), said(empty, A, B)),
        (Step(3, B), said(empty, A, B, B)),
        (Rewind("here"), At(2) if is_told else None),
        (Read(), At(2)),
        (Step(2, A), said(empty, A, A)),
        (Step(4, C), said(empty, A, B, B, C)),
    )
    assert verdict(history, empty).problem


def test_a_stale_repeat_after_a_rewind_is_caught(empty: Sequence) -> None:
    told = said(empty, A)
    history = one_after_another((Keep("start"), At(0)), (Step(0, A), told), (Rewind("start"), At(0)), (Read(), At(2)))
    assert verdict(history, empty)[:3] == (2, 0, 2)


def test_a_session_that_is_gone_has_lost_all(empty: Sequence) -> None:
    history = one_after_another((Step(0, A), said(empty, A)), (Step(2, B), Failure("UNKNOWN_SESSION")))
    assert verdict(history, empty)[:3] == (2, 2, 0)


def test_a_long_history_with_many_unknown_outcomes_is_searched_quickly(empty: Sequence) -> None:
    pairs: list[tuple[Asked, Told | None]] = []
    consumed, told = empty, None
    for number in range(3000):
        start, chunk = consumed.position, (number % 64, 1)
        if number % 3 == 0:
            pairs.append((Step(start, chunk), None))
        consumed = consumed.then(chunk)
        told = consumed.reply(2)
        pairs.append((Step(start, chunk), told))
    assert verdict(one_after_another(*pairs), empty) == Verdict(6000)


def test_a_wrong_history_with_many_unknown_outcomes_is_found_out_soon(empty: Sequence) -> None:
    """All their orders are some 10^20."""
    pairs: list[tuple[Asked, Told | None]] = [(Step(0, A), said(empty, A)), (Keep("one"), At(2)), (Keep("two"), At(2))]
    for _ in range(8):
        pairs += [(Keep("one"), None), (Rewind("one"), None), (Keep("two"), None), (Rewind("two"), None)]
        pairs += [(Step(2, B), None), (Step(3, C), None), (Read(), At(2))]
    pairs.append((Step(2, A), said(empty, A, A, A, position=4)))
    assert verdict(one_after_another(*pairs), empty).num_twice == 2


def test_a_history_is_read_as_it_was_written(tmp_path: Path, empty: Sequence) -> None:
    history = one_after_another(
        (Step(0, A), said(empty, A)), (Step(2, B), None), (Keep("k"), At(2)), (Read(), Failure("INTERNAL"))
    )
    write(tmp_path / "history.jsonl", history.operations)
    copies = read(tmp_path / "history.jsonl")
    assert [(each.asked, each.told, each.began) for each in copies] == [
        (each.asked, each.told, each.began) for each in history.operations
    ]
