"""What a run's outputs mean to the works in it: predictions of the chunks that end, pieces of those that go on, and
what a slot keeps beside the states. Knows codecs; nothing of sessions, slots or time.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.api import Prediction, Predictions, Tensor
from tidegate.codecs import Codec
from tidegate.engine.batch import Batch, Outputs, Row
from tidegate.engine.work import Generation, Work


class Reading:
    """Reads outputs.

    Args:
        codec: The model's.
        raw: Reads for those who ask for the outputs as they are.
    """

    def __init__(self, codec: Codec, raw: Codec | None = None) -> None:
        self._codec = codec
        self._raw = raw or codec

    def planes(self, batch: Batch) -> list[Tensor]:
        """Return what a slot keeps of each row: its states and, where the codec keeps one, its last step's output."""
        if self._codec.kept_output is None:
            return batch.states
        return [*batch.states, self._kept(batch)]

    def logits(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Return the last step's scores of ``rows``, [rows, vocabulary]: what the next token is sampled from."""
        return self._kept(batch)[rows]

    def predict(self, rows: Sequence[Row], outputs: Outputs) -> tuple[dict[Work, Prediction], dict[Work, Exception]]:
        """Return the predictions of the chunks that end in this run, and put the pieces of the others by.

        A row that cannot be read is among the second, with the reason, and fails no other.
        """
        answers: dict[Work, Prediction] = {}
        failures: dict[Work, Exception] = {}
        whole: dict[int, list[Row]] = {}
        for row, work in rows:
            if isinstance(work, Generation):
                continue
            if not work.remaining and not work.pieces and not work.options.every_step and not work.options.is_raw:
                whole.setdefault(work.options.top, []).append((row, work))
                continue
            codec = self._raw if work.options.is_raw else self._codec
            try:
                work.pieces.append(codec.cut(outputs, row, work.options, is_last=not work.remaining))
                if not work.remaining:
                    answers[work] = codec.join(work.pieces, work.length, work.options)
            except Exception as error:  # noqa: BLE001 - told to the row that it concerns
                failures[work] = error
        for top, group in whole.items():
            self._predict_group(group, outputs, top, answers, failures)
        return answers, failures

    def _predict_group(
        self,
        group: Sequence[Row],
        outputs: Outputs,
        top: int,
        answers: dict[Work, Prediction],
        failures: dict[Work, Exception],
    ) -> None:
        """Predict rows that ask the same, all at once; where that fails, each by itself."""
        try:
            predictions = self._codec.predict(outputs, [row for row, _ in group], group[0][1].length, top)
            answers.update(zip((work for _, work in group), predictions, strict=True))
        except Exception as error:  # noqa: BLE001 - told to the row that it concerns
            if len(group) == 1:
                failures[group[0][1]] = error
                return
            for each in group:
                self._predict_group([each], outputs, top, answers, failures)

    def predict_together(self, outputs: Outputs, rows: slice, top: int) -> Predictions:
        """Return what single steps in neighbouring rows are told."""
        return self._codec.predict_together(outputs, rows, 1, top)

    def part(self, together: Predictions) -> list[Prediction]:
        """Return the prediction of each row."""
        return self._codec.part(together)

    def _kept(self, batch: Batch) -> Tensor:
        assert self._codec.kept_output is not None
        return batch.outputs[self._codec.kept_output][:, -1]
