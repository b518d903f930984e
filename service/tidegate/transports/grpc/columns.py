"""A columnar message whose lanes are being stepped, and the reply that its parts make."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tidegate.api import StepResult
from tidegate.errors import TidegateError
from tidegate.faults import conceal
from tidegate.observability.requests import OK, RequestMetrics, outcome_of
from tidegate.slices import Slices, in_slices
from tidegate.transports.reply_queue import abandon
from tidegate.v1 import predictor_pb2
from tidegate.wire.columns import filling_columns, filling_together, fit_lane_errors
from tidegate.wire.errors import encode_error

if TYPE_CHECKING:
    from tidegate.engine.cohort import CohortReply, Told

log = logging.getLogger(__name__)

LaneAnswer: TypeAlias = StepResult | TidegateError
LanePart: TypeAlias = "list[asyncio.Future[StepResult] | TidegateError]"
"""Lanes that go one by one: of each the future of its result, or the error that it met at once."""
Part: TypeAlias = "asyncio.Future[CohortReply] | LanePart"
"""Neighbouring lanes of a message, together or one by one."""


class PendingColumns:
    """Steps of many lanes.

    Args:
        lanes: The message's.
        parts: Of these lanes, in order.
        sizes: Lanes of each part.
        requests: Where lanes that fail are counted.
        max_bytes: Of the reply.
    """

    method = "Columns"
    session = ""

    def __init__(
        self, lanes: list[int], parts: Sequence[Part], sizes: Sequence[int], requests: RequestMetrics, max_bytes: int
    ) -> None:
        self._lanes = lanes
        self._parts = parts
        self._sizes = sizes
        self._requests = requests
        self._max_bytes = max_bytes
        self.outcome = OK
        last = parts[-1][-1] if isinstance(parts[-1], list) else parts[-1]
        self.awaited = last if isinstance(last, asyncio.Future) else None

    async def reply(self) -> predictor_pb2.StreamReply:
        reply = predictor_pb2.StreamReply()
        answers = []
        for part, size in zip(self._parts, self._sizes, strict=True):
            answers.append(await _answer(part, size))
            if len(answers) < len(self._parts):
                await asyncio.sleep(0)
        try:
            await in_slices(self._filling(reply.columns, answers))
        except Exception as error:  # noqa: BLE001 - it is this message's answer, and the stream goes on
            self.outcome = outcome_of(error)
            return refusal(error)
        return reply

    def cancel(self) -> None:
        cancel_parts(self._parts)

    def _filling(
        self, message: predictor_pb2.ColumnsReply, answers: Sequence[CohortReply | list[LaneAnswer]]
    ) -> Slices[None]:
        whole = [told for answer in answers if (told := _whole(answer)) is not None]
        if len(whole) < len(answers):
            yield from self._filling_each(message, answers)
            return
        try:
            yield from self._filling_together(message, whole)
        except Exception:
            log.exception("the answers of %d lanes could not be packed as arrays", len(self._lanes))
            message.Clear()
            yield from self._filling_each(message, answers)

    def _filling_together(self, message: predictor_pb2.ColumnsReply, whole: Sequence[Told]) -> Slices[None]:
        positions = [start + 1 for told in whole for start in told.starts]
        drift, first = {}, 0
        for told, size in zip(whole, self._sizes, strict=True):
            drift.update({self._lanes[first + lane]: each for lane, each in told.drift.items()})
            first += size
        yield from filling_together(message, self._lanes, positions, [told.predictions for told in whole], drift)

    def _filling_each(
        self, message: predictor_pb2.ColumnsReply, answers: Sequence[CohortReply | list[LaneAnswer]]
    ) -> Slices[None]:
        results: list[LaneAnswer] = []
        for answer, size in zip(answers, self._sizes, strict=True):
            results += answer if isinstance(answer, list) else answer.results(size)
            yield
        failed = [outcome_of(result) for result in results if isinstance(result, TidegateError)]
        if failed:
            self._requests.lanes_failed(failed)
            self.outcome = failed[0] if len(failed) == len(results) else OK
        yield from filling_columns(message, self._lanes, results)
        if failed:
            fit_lane_errors(message, self._max_bytes)


def awaited_of(part: Part) -> asyncio.Future[Any] | None:
    """What a part mainly waits for; None where none of its lanes was taken."""
    if not isinstance(part, list):
        return part
    return next((each for each in reversed(part) if isinstance(each, asyncio.Future)), None)


def cancel_parts(parts: Sequence[Part]) -> None:
    """Abandon what was submitted."""
    for part in parts:
        for future in part if isinstance(part, list) else [part]:
            if isinstance(future, asyncio.Future):
                abandon(future)


def refusal(error: Exception) -> predictor_pb2.StreamReply:
    """The reply to a message that failed as a whole."""
    return predictor_pb2.StreamReply(error=encode_error(conceal(error)))


def _whole(answer: CohortReply | list[LaneAnswer]) -> Told | None:
    """The arrays of a part that went together to the end, every lane of it."""
    return None if isinstance(answer, list) or answer.aside else answer.told


async def _answer(part: Part, size: int) -> CohortReply | list[LaneAnswer]:
    if isinstance(part, list):
        # Lanes end in the same tick, mostly: awaiting them in turn suspends once, a finished future costs nothing.
        return [each if isinstance(each, TidegateError) else await _lane_answer(each) for each in part]
    try:
        return await part
    except Exception as error:  # noqa: BLE001 - it is these lanes' answer
        return [conceal(error)] * size


async def _lane_answer(future: asyncio.Future[StepResult]) -> LaneAnswer:
    try:
        return await future
    except Exception as error:  # noqa: BLE001 - it is this lane's answer
        return conceal(error)
