"""What a chart makes of streams: how long a change goes unseen, and how often there is an alarm without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.drift.streams import AFTER, BEFORE, Case, Values, drift_of, files_of
from tidegate.bundle import Bundle
from tidegate.drift import Chart
from tidegate_export.calibration import Learned, Passages, chart_of, learn, surprises
from tidegate_export.held_out import calibration

TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Delays:
    """Blocks from the change to each state, of the streams that were normal until then; None: not within ``AFTER``."""

    warning: list[int | None]
    drift: list[int | None]
    num_early: int
    together: int | None
    """Of the model's chart, when the blocks of 64 streams come to it in turns."""


def delays(case: Case) -> Delays:
    """Follow each stream's chart over the change."""
    chart = Chart(case.drift)
    found: dict[str, list[int | None]] = {"warning": [], "drift": []}
    num_early = 0
    for means in case.streams:
        before = chart.advance_all(chart.start(), means[:BEFORE])
        if before.state != "normal":
            num_early += 1
            continue
        states = []
        for mean in means[BEFORE:]:
            before = chart.advance(before, mean)
            states.append(before.state)
        found["warning"].append(_first(states, ("warning", "drift")))
        found["drift"].append(_first(states, ("drift",)))
    return Delays(found["warning"], found["drift"], num_early, _together(case))


def _together(case: Case) -> int | None:
    """Blocks until the model's chart says drift, of streams that change all at once and are served in turns."""
    streams = case.streams[:TOGETHER]
    chart = Chart(case.drift)
    charted = chart.advance_all(chart.start(), [each[block] for block in range(BEFORE) for each in streams])
    for count, mean in enumerate((each[block] for block in range(BEFORE, BEFORE + AFTER) for each in streams), 1):
        charted = chart.advance(charted, mean)
        if charted.state == "drift":
            return count
    return None


def _first(states: Sequence[str], wanted: tuple[str, ...]) -> int | None:
    return next((count for count, state in enumerate(states, 1) if state in wanted), None)


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """Alarms where nothing has changed.

    Attributes:
        learned: Blocks between two warnings, and between two of drift, as the manifest says.
        mixed: Blocks between two of drift where they come from everywhere in turns, as to a model with many sessions.
        unseen: Alarms and blocks of a chart learned on the first part of the held-out data, over the rest of it.
    """

    learned: tuple[float, float]
    mixed: float
    unseen: tuple[int, int]


def false_alarms(bundle: Bundle) -> FalseAlarms:
    drift, data = drift_of(bundle), calibration(bundle.manifest, files_of(bundle))
    assert not isinstance(data, str)
    values = surprises(bundle.graph, bundle.manifest, data.sequences)
    learned = learn(values, drift.block)
    assert isinstance(learned, Learned)
    shuffled = np.random.default_rng(0).permutation(learned.means)
    mixed = Passages(drift, Learned((shuffled,), drift.block), 40_000, seed=2)
    return FalseAlarms(
        (drift.warning.run_length, drift.drift.run_length),
        mixed.run_length(drift.drift.width),
        _unseen(values, drift.block),
    )


def _unseen(values: list[Values], block: int) -> tuple[int, int]:
    """Learn on the first sequences, or the first half of the only one; count alarms and blocks over the others."""
    if len(values) == 1:
        half = len(values[0]) // 2
        values = [values[0][:half], values[0][half:]]
    first = max(1, len(values) * 2 // 5)
    known, new = learn(values[:first], block), learn(values[first:], block)
    assert isinstance(known, Learned)
    assert isinstance(new, Learned)
    drift = chart_of(known, "a part")
    chart = Chart(drift)
    alarms = 0
    for sequence in new.sequences:
        charted = chart.start()
        for mean in sequence.tolist():
            charted = chart.advance(charted, mean)
            if charted.state == "drift":
                alarms += 1
                charted = chart.start()
    return alarms, len(new.means)
