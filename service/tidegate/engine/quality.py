"""How well a model predicts, seen from the steps that sessions and callers committed: surprise and its control chart,
coverage of forecast intervals, inputs that are not like those of the training.

What a model generated itself does not count, nor does a prompt, nor a repeat. Pure but for the log: knows a run's
outputs and whose rows they are; nothing of scheduling, slots, time or how figures are told.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.api import DriftReport, FloatArray, QualitySnapshot, SurpriseReport, Tensor
from tidegate.codecs.scores import BAND, Band, Scores
from tidegate.drift import NOT_WHOLE, STATES, Chart, ChartState, State, add_steps
from tidegate.engine.output import Batch
from tidegate.engine.request import PREDICT, STEP, Request
from tidegate.engine.session import Session
from tidegate.histogram import Histogram

log = logging.getLogger(__name__)

BOUNDS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)
"""Of block means: bits a character are 1 to 5, scaled errors 0.2 to 2."""

MOST_SURPRISE = 1e6
"""Of a step, in whichever unit. Beyond it a step is an outlier: one of 1e38 would be all that the mean ever tells."""

_NEVER = 1 << 62
"""The block of a model without a chart: no position comes that far."""

_COUNTED = (STEP, PREDICT)


@dataclass(slots=True)
class RequestScores:
    """What the steps of rows say of the model, and what their sessions keep of that once they are committed.

    Attributes:
        surprises: Of the steps, [row, step]; None: they do not count.
        block_sums: Each session's after the steps.
        means: By row, of the blocks that ended.
        charts: By row, the session's own chart after these.
        inputs: The first of the graph's inputs, [row, step, …], where they are looked at.
        bands: Each session's after the steps, where the model says one.
        is_inside: Whether each step's truth was in the band before it, [row, step].
        is_known: Whether there was one.
    """

    surprises: FloatArray | None
    block_sums: list[float]
    means: dict[int, list[float]]
    charts: dict[int, ChartState]
    inputs: Tensor | None = None
    bands: list[tuple[float, float]] | None = None
    is_inside: NDArray[np.bool_] | None = None
    is_known: NDArray[np.bool_] | None = None


class _Surprises(NamedTuple):
    """Steps whose surprise a mean is made of, and the sum over them; those where it is no number; and outliers."""

    num_steps: int
    total: float
    num_nan: int = 0
    num_outliers: int = 0


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

    def take(self, batch: Batch) -> None:  # noqa: C901
        """Score what ends in a run, before its sessions advance, and put in what callers are told of sessions' charts.

        What is committed at once is counted at once; what must be stored first has its ``Request.scored`` for `commit`.
        """
        if self._scores.surprise is None:
            return
        singles: list[Request] = []
        length = batch.inputs[0].shape[1]
        for request in batch.requests:
            if request.offset < request.length:
                continue
            if request.kind not in _COUNTED:
                request.scored = RequestScores(None, [NOT_WHOLE] * len(request.sessions), {}, {})
                if not request.is_stored:
                    self.commit(request.scored, request.sessions)
            elif request.num_rows == 1 and request.length == length and request.sessions and not request.is_stored:
                singles.append(request)
            else:
                request.scored = self.score([request], batch)
                if not request.is_stored:
                    self.commit(request.scored, request.sessions)
                for row, chart in request.scored.charts.items():
                    request.set_drift(row, chart.to_drift())
        if singles:
            scored = self.score(singles, batch)
            self.commit(scored, [request.sessions[0] for request in singles])
            for row, chart in scored.charts.items():
                singles[row].set_drift(0, chart.to_drift())

    def score(self, requests: Sequence[Request], batch: Batch) -> RequestScores:
        """Score requests that end in a run, one or several that began in it too, and change nothing yet."""
        assert self._scores.surprise is not None
        band = self._scores.band if self._sees_inputs else None
        bands: Any = None
        first = requests[0]
        sessions = first.sessions if len(requests) == 1 else [request.sessions[0] for request in requests]
        starts = first.starts if len(requests) == 1 else [request.starts[0] for request in requests]
        if first.length == batch.inputs[0].shape[1]:
            rows: Any = first.rows if len(requests) == 1 else [request.rows[0] for request in requests]
            if isinstance(rows, range):
                rows = slice(rows.start, rows.stop)
            values: Any = batch.outputs[self._scores.surprise][rows]
            inputs: Any = batch.inputs[0][rows] if self._sees_inputs else None
            if band is not None:
                bands = band.cut(batch.outputs[band.output][rows])
        else:
            values = np.stack([_joined(pieces, self._scores.surprise) for pieces in first.pieces])
            inputs = first.inputs[0]
            if band is not None:
                bands = np.stack([_joined_bands(pieces, band) for pieces in first.pieces])
        scored = self._score_surprise(values, sessions, starts)
        if self._sees_inputs:
            scored.inputs = inputs
            if band is not None:
                _score_bands(scored, sessions, inputs[:, :, band.column], bands)
        return scored

    def _score_surprise(self, values: FloatArray, sessions: Sequence[Session], starts: Sequence[int]) -> RequestScores:
        block = self._block
        sums: list[float] = []
        means: dict[int, list[float]] = {}
        if values.shape[1] == 1 and sessions:  # most of a busy server's steps: loops with as little in them as can be
            sums = [session.block_sum + value for session, value in zip(sessions, values[:, 0].tolist(), strict=True)]
            for row in [row for row, start in enumerate(starts) if not (start + 1) % block]:
                if math.isfinite(sums[row]):
                    means[row] = [sums[row] / block]
                sums[row] = 0.0
        else:
            for row, some in enumerate(values.tolist()):
                before, start = (sessions[row].block_sum, starts[row]) if sessions else (NOT_WHOLE, 0)
                block_sum, ended = add_steps(before, start, some, block)
                sums.append(block_sum)
                if ended:
                    means[row] = ended
        charted = [row for row in means if sessions and sessions[row].request.drift]
        charts = {row: self._advanced(sessions[row], means[row]) for row in charted}
        return RequestScores(values, sums, means, charts)

    def commit(  # noqa: C901
        self, scored: RequestScores, sessions: Sequence[Session], rows: Sequence[int] | None = None
    ) -> None:
        """Count scored rows, for they are committed: all, or those of ``rows``. ``sessions`` are those of all."""
        values = scored.surprises
        if rows is None:
            rows = range(len(scored.block_sums))
            for session, block_sum in zip(sessions, scored.block_sums, strict=False):
                session.block_sum = block_sum
        else:
            values = None if values is None else values[list(rows)]
            for row in rows:
                sessions[row].block_sum = scored.block_sums[row]
        if scored.bands is not None and sessions:
            for row in rows:
                sessions[row].band = scored.bands[row]
        if values is None:
            return
        self._add(self._sort_out(values.ravel().tolist()))
        for row, means in scored.means.items():
            if row in rows:
                self._add_blocks(means)
        for row, chart in scored.charts.items():
            if row in rows:
                sessions[row].chart = chart
        if scored.inputs is not None:
            self._count_inputs(scored, list(rows))

    def _sort_out(self, values: Sequence[float]) -> _Surprises:
        """Tell the surprise of steps that a mean is made of from the others."""
        total, most = sum(values), self._most
        if abs(total) <= most or (math.isfinite(total) and max(values) <= most and min(values) >= -most):
            return _Surprises(len(values), total)
        usual = [value for value in values if abs(value) <= most]
        num_nan = sum(not math.isfinite(value) for value in values)
        return _Surprises(len(usual), sum(usual), num_nan, len(values) - len(usual) - num_nan)

    def _add(self, surprises: _Surprises) -> None:
        num_steps, total, num_nan, num_outliers = surprises
        self._num_steps += num_steps
        self._total += total
        self._num_nan += num_nan
        self._num_outliers += num_outliers

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

    def _count_inputs(self, scored: RequestScores, rows: list[int]) -> None:
        """Count what is unusual in the inputs of rows, and how many were where the model expected them."""
        scores, inputs = self._scores, scored.inputs
        assert inputs is not None
        some: Any = inputs[rows].reshape(-1, *inputs.shape[2:])
        if scores.unknown is not None:
            self._num_unknown += int(np.count_nonzero(some == scores.unknown))
        if scores.ranges is not None:
            self._num_out_of_range += scores.ranges.num_outside(some)
        if scored.is_inside is not None and scored.is_known is not None:
            known = scored.is_known[rows]
            inside = int(np.count_nonzero(scored.is_inside[rows] & known))
            self._num_inside += inside
            self._num_outside += int(np.count_nonzero(known)) - inside


def _score_bands(scored: RequestScores, sessions: Sequence[Session], truths: Any, bands: Any) -> None:
    """Hold each step's truth [row, step] against the band that the step before it gave; ``bands`` [row, step, 2]."""
    before = [session.band for session in sessions] if sessions else [None] * len(bands)
    first = np.array([band or (math.nan, math.nan) for band in before], bands.dtype)
    expected = np.concatenate((first[:, None], bands[:, :-1]), axis=1)
    scored.is_known = np.ones(truths.shape, np.bool_)
    scored.is_known[:, 0] = [band is not None for band in before]
    scored.is_inside = (truths >= expected[..., 0]) & (truths <= expected[..., 1])
    scored.bands = [(low, high) for low, high in bands[:, -1].tolist()]


def _joined(pieces: Sequence[Mapping[str, Tensor]], name: str) -> Any:
    """Return an output of all steps of a row that came in pieces."""
    return np.concatenate([piece[name] for piece in pieces])


def _joined_bands(pieces: Sequence[Mapping[str, Tensor]], band: Band) -> FloatArray:
    """Return the bands after each step of a row that came in pieces, [steps, 2]."""
    return np.concatenate([_float(piece[BAND]) if BAND in piece else band.cut(piece[band.output]) for piece in pieces])


def _float(array: Any) -> FloatArray:
    found: FloatArray = array
    return found
