"""A columnar message whose lanes are being stepped, and its reply."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tidegate.errors import TidegateError
from tidegate.faults import conceal
from tidegate.observability.requests import OK, RequestMetrics, outcome_of
from tidegate.reply import RowsReply
from tidegate.slices import Slices, in_slices
from tidegate.transports.reply_queue import abandon
from tidegate.v1 import predictor_pb2
from tidegate.wire.columns import ReplyBlock, filling_blocks, filling_columns, fit_lane_errors
from tidegate.wire.errors import encode_error

log = logging.getLogger(__name__)


class PendingColumns:
    """Steps of many lanes.

    Args:
        lanes: The message's.
        rows: Takes each lane's result.
        metrics: Where lanes that fail are counted.
        max_bytes: Of the reply.
    """

    method = "Columns"
    session = ""

    def __init__(self, lanes: list[int], rows: RowsReply, metrics: RequestMetrics, max_bytes: int) -> None:
        self._lanes = lanes
        self._metrics = metrics
        self._max_bytes = max_bytes
        self.awaited = self._rows = rows
        self.outcome = OK

    async def reply(self) -> predictor_pb2.StreamReply:
        reply = predictor_pb2.StreamReply()
        try:
            await in_slices(self._filling(reply.columns))
        except Exception as error:  # noqa: BLE001 - it is this message's answer, and the stream goes on
            self.outcome = outcome_of(error)
            return refusal(error)
        return reply

    def cancel(self) -> None:
        abandon(self._rows)

    def _filling(self, message: predictor_pb2.ColumnsReply) -> Slices[None]:
        rows = self._rows
        errors = [(row, result) for row, result in sorted(rows.apart.items()) if isinstance(result, TidegateError)]
        if errors:
            failed = [outcome_of(error) for _, error in errors]
            self._metrics.lanes_failed(failed)
            self.outcome = failed[0] if len(failed) == rows.num_rows else OK
        if rows.blocks and len(errors) == len(rows.apart):
            try:
                yield from self._filling_blocks(message, errors)
            except Exception:
                log.exception("the answers of %d lanes could not be packed as arrays", rows.num_rows)
                message.Clear()
                yield from filling_columns(message, self._lanes, rows.results())
        else:
            yield from filling_columns(message, self._lanes, rows.results())
        if errors:
            fit_lane_errors(message, self._max_bytes)

    def _filling_blocks(
        self, message: predictor_pb2.ColumnsReply, errors: Sequence[tuple[int, TidegateError]]
    ) -> Slices[None]:
        blocks = []
        for rows, block in self._rows.blocks:
            positions = [start + block.length for start in block.starts]
            blocks.append(ReplyBlock(rows, positions, block.predictions, block.drift))
        yield from filling_blocks(message, self._lanes, blocks, [(self._lanes[row], error) for row, error in errors])


def refusal(error: Exception) -> predictor_pb2.StreamReply:
    """The reply to a message that failed as a whole."""
    return predictor_pb2.StreamReply(error=encode_error(conceal(error)))
