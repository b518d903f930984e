"""How well a model predicts, seen from the steps that sessions and callers committed: surprise and its control chart,
coverage of forecast intervals, inputs that are not like those of the training.

What a model generated itself does not count, nor does a prompt, nor a repeat. Pure but for the log: knows a run's
outputs and whose rows they are; nothing of scheduling, slots, time or how figures are told.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from tidegate.api import Drift, DriftReport, FloatArray, QualitySnapshot, SurpriseReport
from tidegate.codecs.scores import BAND, Scores
from tidegate.drift import NOT_WHOLE, STATES, Chart, ChartState, State, add_steps
from tidegate.engine.batch import Batch, Outputs, Scored, Surprises
from tidegate.engine.cohort import Cohort
from tidegate.engine.session import Session
from tidegate.engine.work import PREDICT, STEP, Work
from tidegate.histogram import Histogram

log = logging.getLogger(__name__)

BOUNDS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)
"""Of block means: bits a character are 1 to 5, scaled errors 0.2 to 2."""

MOST_SURPRISE = 1e6
"""Of a step, in whichever unit. Beyond it a step is an outlier: one of 1e38 would be all that the mean ever tells."""

_NEVER = 1 << 62
"""The block of a model without a chart: no position comes that far."""

_COUNTED = (STEP, PREDICT)


class Quality:
    """Of one model.

    Args:
        scores: What of it can be scored.
        chart: The rules of its control chart; None where it was not calibrated.
        label: What the log calls it.
    """

    def __init__(self, scores: Scores, chart: Chart | None, label: str) -> None:
        self._scores = scores
        self._chart = chart
        self._label = label
        self._charted = ChartState(math.nan) if chart is None else chart.start()
        self._block = _NEVER if chart is None else chart.block
        self._sees_inputs = any(it is not None for it in (scores.band, scores.unknown, scores.ranges))
        self._most = MOST_SURPRISE if chart is None else chart.most
        self._num_steps = self._num_nan = self._num_outliers = 0
        self._total = 0.0
        self._blocks = Histogram(BOUNDS)
        self._changes: dict[str, int] = dict.fromkeys(STATES, 0)
        self._num_unknown = self._num_out_of_range = self._num_missing = self._num_inside = self._num_outside = 0

    @property
    def has_chart(self) -> bool:
        return self._chart is not None

    @property
    def surprise(self) -> SurpriseReport | None:
        """The mean since the start; None where the model tells none."""
        if self._scores.surprise is None:
            return None
        return SurpriseReport(self._total / self._num_steps if self._num_steps else None, self._num_steps)

    @property
    def drift(self) -> DriftReport | None:
        return None if self._chart is None else self._chart.report(self._charted)

    def snapshot(self) -> QualitySnapshot:
        return QualitySnapshot(
            self._scores.unit if self._scores.surprise else "",
            self._num_steps,
            self._total,
            self._num_nan,
            self._num_outliers,
            self._blocks.snapshot(),
            self.drift,
            dict(self._changes),
            self._num_unknown,
            self._num_out_of_range,
            self._num_missing,
            self._num_inside,
            self._num_outside,
        )

    def refused(self, reason: str) -> None:
        """Count an input that the codec refused."""
        self._num_unknown += reason == "UNKNOWN_TOKEN"
        self._num_missing += reason == "NOT_FINITE"

    # ---- chunks that are committed as soon as they have run

    def take(self, batch: Batch) -> None:
        """Score the chunks that end in this run, before their sessions advance.

        Single steps are most of a busy server's work, hence the loop with as little in it as can be.
        """
        name = self._scores.surprise
        if name is None:
            return
        if batch.outputs[name].shape[1] != 1:
            for row, work in batch.rows:
                self._take_row(batch, row, work)
            return
        values: list[float] = batch.outputs[name][:, 0].tolist()
        block, total, count = self._block, 0.0, 0
        for row, work in batch.rows:
            if work.length != 1 or work.kind not in _COUNTED:
                self._take_row(batch, row, work)
                continue
            value = values[row]
            total += value
            count += 1
            session = work.session
            if session is not None:
                session.block_sum = block_sum = session.block_sum + value
                if not (session.position + 1) % block and (told := self._end_block(session, block_sum)) is not None:
                    batch.answers[work].drift = told
        if abs(total) <= self._most:
            self._total += total
            self._num_steps += count
        else:
            self._add(self._sorted([values[row] for row, work in batch.rows if _is_single(work)]))
        if self._sees_inputs and count:
            singles = [(row, work) for row, work in batch.rows if _is_single(work)]
            inputs = np.concatenate([work.inputs[0] for _, work in singles])
            self._look_at([work.session for _, work in singles], inputs, [row for row, _ in singles], batch.outputs)

    def take_together(self, cohort: Cohort, outputs: Outputs, first: int, drift: dict[int, Drift]) -> None:
        """Score the lanes of a cohort that go together, likewise; its rows begin at ``first``.

        What sessions' own charts say of a block is put into ``drift``, by lane.
        """
        name = self._scores.surprise
        if name is None:
            return
        lanes, sessions = cohort.lanes, cohort.sessions
        values: list[float] = outputs[name][first : first + len(sessions), 0].tolist()
        block, starts = self._block, cohort.starts
        for lane in lanes:
            session = sessions[lane]
            session.block_sum = block_sum = session.block_sum + values[lane]
            if not (starts[lane] + 1) % block and (told := self._end_block(session, block_sum)) is not None:
                drift[lane] = told
        self._add(self._sorted([values[lane] for lane in lanes]))
        if self._sees_inputs and lanes:
            chosen = list(lanes)
            rows = [first + lane for lane in chosen]
            self._look_at([sessions[lane] for lane in chosen], cohort.inputs[0][chosen, 0], rows, outputs)

    def _sorted(self, values: Sequence[float]) -> Surprises:
        """Tell the surprise of steps that a mean is made of from the others."""
        total, most = sum(values), self._most
        if abs(total) <= most or (math.isfinite(total) and max(values) <= most and min(values) >= -most):
            return Surprises(len(values), total)
        usual = [value for value in values if abs(value) <= most]
        num_nan = sum(not math.isfinite(value) for value in values)
        return Surprises(len(usual), sum(usual), num_nan, len(values) - len(usual) - num_nan)

    def _add(self, surprises: Surprises) -> None:
        num_steps, total, num_nan, num_outliers = surprises
        self._num_steps += num_steps
        self._total += total
        self._num_nan += num_nan
        self._num_outliers += num_outliers

    def _end_block(self, session: Session, block_sum: float) -> Drift | None:
        """End the block of a session; return where that brings the session's own chart."""
        session.block_sum = 0.0
        if not math.isfinite(block_sum):
            return None
        means = [block_sum / self._block]
        self._add_blocks(means)
        if not session.request.drift:
            return None
        session.chart = self._advanced(session, means)
        return _told(session.chart)

    def _look_at(self, sessions: Sequence[Session | None], inputs: Any, rows: Sequence[int], outputs: Outputs) -> None:
        """Count what is unusual in the inputs [row, …] of single steps, all at once."""
        unknown, beyond = self._unusual(inputs)
        self._num_unknown += unknown
        self._num_out_of_range += beyond
        band = self._scores.band
        if band is None:
            return
        truths = inputs[:, band.column].tolist()
        bands = band.cut(outputs[band.output][rows, -1]).tolist()
        for session, truth, (low, high) in zip(sessions, truths, bands, strict=True):
            if session is None:
                continue
            if session.band is not None:
                is_inside = session.band[0] <= truth <= session.band[1]
                self._num_inside += is_inside
                self._num_outside += not is_inside
            session.band = low, high

    def _take_row(self, batch: Batch, row: int, work: Work) -> None:
        if work.remaining:
            return
        if work.kind in _COUNTED:
            self.commit(self.score(batch, row, work), work.session)
        elif work.session is not None:
            work.session.block_sum = NOT_WHOLE

    # ---- chunks that are stored first

    def score(self, batch: Batch, row: int, work: Work) -> Scored:
        """Score a chunk that ends in ``row`` of a run, and change nothing yet but its answer."""
        session = work.session
        chart = None if session is None else session.chart
        if work.kind not in _COUNTED or self._scores.surprise is None:
            return Scored(NOT_WHOLE, chart)
        values = _surprise(work, row, batch.outputs, self._scores.surprise)
        block_sum, position = (NOT_WHOLE, 0) if session is None else (session.block_sum, session.position)
        block_sum, means = add_steps(block_sum, position, values, self._block)
        if means and session is not None and session.request.drift:
            chart = self._advanced(session, means)
            batch.answers[work].drift = _told(chart)
        scored = Scored(block_sum, chart, means, self._sorted(values))
        if not self._sees_inputs:
            return scored
        unknown, beyond = self._unusual(work.inputs[0])
        band, inside, outside = self._covered(work, row, batch.outputs)
        return scored._replace(band=band, inside=inside, outside=outside, unknown=unknown, beyond=beyond)

    def commit(self, scored: Scored, session: Session | None) -> None:
        """Count a scored chunk, for it is committed."""
        self._add(scored.surprises)
        self._num_unknown += scored.unknown
        self._num_out_of_range += scored.beyond
        self._num_inside += scored.inside
        self._num_outside += scored.outside
        self._add_blocks(scored.means)
        if session is not None:
            session.block_sum, session.band, session.chart = scored.block_sum, scored.band, scored.chart

    def _advanced(self, session: Session, means: Sequence[float]) -> ChartState:
        """Return a session's own chart after more blocks."""
        assert self._chart is not None
        return self._chart.advance_all(session.chart or self._chart.start(), means)

    def _add_blocks(self, means: Sequence[float]) -> None:
        if self._chart is None:
            return
        for mean in means:
            # A block with an outlier is one of the highest bucket; its sum is to be told for the others too.
            self._blocks.add(max(-self._most, min(mean, self._most)))
            before, self._charted = self._charted, self._chart.advance(self._charted, mean)
            if self._charted.state != before.state:
                self._changed(before.state, self._chart.report(self._charted))

    def _changed(self, before: State, now: DriftReport) -> None:
        self._changes[self._charted.state] += 1
        log.warning(
            "model %s: %s, was %s: its surprise averages %.3f %s over the last blocks, %.3f ± %.3f where all is well",
            self._label,
            now.state,
            before,
            now.ewma,
            self._scores.unit,
            now.mean,
            now.mean - now.drift[0],
        )

    def _unusual(self, inputs: Any) -> tuple[int, int]:
        """Return how many tokens are unknown, and how many values beyond the training's."""
        scores = self._scores
        unknown = 0 if scores.unknown is None else int(np.count_nonzero(inputs == scores.unknown))
        return unknown, 0 if scores.ranges is None else scores.ranges.num_outside(inputs)

    def _covered(self, work: Work, row: int, outputs: Outputs) -> tuple[tuple[float, float] | None, int, int]:
        """Return the band for the next step, and how many of the work's inputs were inside and outside of theirs."""
        band = self._scores.band
        if band is None:
            return None, 0, 0
        bands = _bands(work, row, outputs, self._scores)
        truths: Any = work.inputs[0][:, band.column]
        known = None if work.session is None else work.session.band
        if known is None:
            expected, truths = bands[:-1], truths[1:]
        else:
            expected = np.concatenate((np.array([known], bands.dtype), bands[:-1]))
        inside = int(np.count_nonzero((truths >= expected[:, 0]) & (truths <= expected[:, 1])))
        low, high = bands[-1].tolist()
        return (low, high), inside, len(truths) - inside


def _is_single(work: Work) -> bool:
    return work.length == 1 and work.kind in _COUNTED


def _told(charted: ChartState) -> Drift:
    return Drift(charted.state, charted.ewma, charted.blocks)


def _surprise(work: Work, row: int, outputs: Outputs, name: str) -> list[float]:
    """Return the surprise of all steps of a chunk, which may have come in pieces."""
    pieces: list[Any] = [piece[name] for piece in work.pieces] if work.pieces else [outputs[name][row]]
    return list(chain.from_iterable(piece.tolist() for piece in pieces))


def _bands(work: Work, row: int, outputs: Outputs, scores: Scores) -> FloatArray:
    """Return the bands after each step of a chunk, [steps, 2]."""
    band = scores.band
    assert band is not None
    if not work.pieces:
        return band.cut(outputs[band.output][row])
    pieces: list[Any] = [piece[BAND] if BAND in piece else band.cut(piece[band.output]) for piece in work.pieces]
    return np.concatenate(pieces)
