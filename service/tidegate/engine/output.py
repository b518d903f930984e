"""What a run's outputs mean to the requests in it: predictions of the chunks that end, pieces of those that go on, and
what a slot keeps beside the states. Knows codecs; nothing of sessions, slots or time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.api import Prediction, Tensor
from tidegate.codecs import Codec
from tidegate.engine.request import Generation, Request

log = logging.getLogger(__name__)

Outputs = dict[str, Tensor]
Failures = list[tuple[Request, int, Exception]]
"""Rows that cannot be read, each with the reason."""


@dataclass(slots=True)
class Batch:
    """A run's results on their way to the callers: the requests that are still wanted (``Request.rows`` says where in
    the arrays their rows are), the run's inputs, outputs and new states.
    """

    requests: list[Request]
    inputs: list[Tensor]
    outputs: Outputs
    states: list[Tensor]


class OutputProcessor:
    """Reads outputs.

    Args:
        codec: The model's.
        raw: Reads for those who ask for the outputs as they are.
    """

    def __init__(self, codec: Codec, raw: Codec | None = None) -> None:
        self._codec = codec
        self._raw = raw or codec
        self.split = codec.split

    def planes(self, batch: Batch) -> list[Tensor]:
        """Return what a slot keeps of each row: its states and, where the codec keeps one, its last step's output."""
        if self._codec.kept_output is None:
            return batch.states
        return [*batch.states, self._kept(batch)]

    def logits(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Return the last step's scores of ``rows``, [rows, vocabulary]: what the next token is sampled from."""
        return self._kept(batch)[rows]

    def process(self, batch: Batch) -> Failures:
        """Set the predictions of the requests that end in this run, and put the pieces of the others by.

        A row that cannot be read fails no other.
        """
        failures: Failures = []
        singles: dict[int, list[Request]] = {}
        for request in batch.requests:
            if isinstance(request, Generation):
                continue
            options = request.options
            if request.offset < request.length or request.pieces or options.every_step or options.is_raw:
                self._cut_rows(request, batch.outputs, failures)
            elif request.lanes is None:
                singles.setdefault(options.top, []).append(request)
            else:
                self._read_together(request, batch.outputs, failures)
        for top, group in singles.items():
            self._read_singles(group, batch.outputs, top, failures)
        return failures

    def _read_singles(self, group: list[Request], outputs: Outputs, top: int, failures: Failures) -> None:
        """Read requests of one row that ask the same, all at once; where that fails, each by itself."""
        try:
            rows = [request.rows[0] for request in group]
            is_span = rows[-1] - rows[0] == len(rows) - 1
            where = slice(rows[0], rows[-1] + 1) if is_span else rows
            read = self._codec.read(outputs, where, group[0].length, top)
            for request, prediction in zip(group, self._codec.split(read), strict=True):
                request.predictions = [prediction]
        except Exception as error:  # noqa: BLE001 - told to the row that it concerns
            if len(group) == 1:
                failures.append((group[0], 0, error))
                return
            for request in group:
                self._read_singles([request], outputs, top, failures)

    def _read_together(self, request: Request, outputs: Outputs, failures: Failures) -> None:
        """Read a request's rows as arrays; where that fails, each by itself."""
        rows, top = request.rows, request.options.top
        try:
            where = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
            request.together = self._codec.read(outputs, where, request.length, top)
        except Exception:
            log.exception("the results of %d rows could not be read together", request.num_rows)
            request.predictions = []
            for place, row in enumerate(rows):
                try:
                    request.predictions += self._codec.split(self._codec.read(outputs, [row], request.length, top))
                except Exception as error:  # noqa: BLE001 - told to the row that it concerns
                    request.predictions.append(Prediction(request.length))
                    failures.append((request, place, error))

    def _cut_rows(self, request: Request, outputs: Outputs, failures: Failures) -> None:
        options, is_last = request.options, request.offset == request.length
        codec = self._raw if options.is_raw else self._codec
        if not request.pieces:
            request.pieces = [[] for _ in request.rows]
        if is_last:
            request.predictions = []
        for place, (row, pieces) in enumerate(zip(request.rows, request.pieces, strict=True)):
            try:
                pieces.append(codec.cut(outputs, row, options, is_last=is_last))
                if is_last:
                    assert request.predictions is not None
                    request.predictions.append(codec.join(pieces, request.length, options))
            except Exception as error:  # noqa: BLE001 - told to the row that it concerns
                failures.append((request, place, error))
                if request.predictions is not None:
                    request.predictions.append(Prediction(request.length))

    def _kept(self, batch: Batch) -> Tensor:
        assert self._codec.kept_output is not None
        return batch.outputs[self._codec.kept_output][:, -1]
