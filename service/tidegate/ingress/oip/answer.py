"""The reply that a request is due: waited for, put together from its rows, timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from tidegate.core import Prediction, StepResult
from tidegate.errors import TidegateError
from tidegate.ingress.oip.requests import InferReply, InferRequest
from tidegate.ingress.oip.signature import Port, Signature
from tidegate.ingress.oip.statistics import Statistics, Timing

Encoded = TypeVar("Encoded")
Due = asyncio.Future[StepResult] | asyncio.Future[Prediction]


class Model(NamedTuple):
    """What a request is checked against and answered by."""

    name: str
    version: str
    signature: Signature
    sha256: str


class Answer(Protocol):
    """A reply that is due, from here or from elsewhere."""

    @property
    def awaited(self) -> asyncio.Future[Any]:
        """What the reply mainly waits for."""

    async def reply(self, encode: Callable[[InferReply], Encoded]) -> Encoded:
        """Wait for the reply, and return it as ``encode`` writes it; cancelling this abandons the request."""

    def cancel(self) -> None:
        """Abandon the request: what is not committed yet will not be."""


class LocalAnswer:
    """The reply that one request is due."""

    __slots__ = ("_arrived", "_due", "_explain", "_model", "_request", "_statistics", "_submitted", "_wanted")

    def __init__(
        self,
        statistics: Statistics,
        request: InferRequest,
        model: Model,
        wanted: Sequence[Port],
        due: Sequence[Due],
        arrived: int,
        explain: Callable[[TidegateError], TidegateError],
    ) -> None:
        self._statistics = statistics
        self._request = request
        self._model = model
        self._wanted = wanted
        self._due = due
        self._arrived = arrived
        self._explain = explain
        self._submitted = time.perf_counter_ns()

    @property
    def awaited(self) -> Due:
        """What the reply mainly waits for."""
        return self._due[-1]

    async def reply(self, encode: Callable[[InferReply], Encoded]) -> Encoded:
        """Wait for the reply, and return it as ``encode`` writes it; cancelling this abandons the request."""
        statistics = self._statistics
        key = self._model.name, self._model.version
        try:
            reply, answered = await self._wait(), time.perf_counter_ns()
            encoded = encode(reply)
        except Exception as error:
            statistics.failed(key, time.perf_counter_ns() - self._arrived)
            if isinstance(error, TidegateError):
                raise self._explain(error) from error
            raise
        timing = Timing(self._arrived, self._submitted, answered, time.perf_counter_ns())
        statistics.succeeded(key, len(self._due), timing)
        return encoded

    def cancel(self) -> None:
        """Abandon the request: what is not committed yet will not be."""
        for due in self._due:
            due.cancel()

    async def _wait(self) -> InferReply:
        try:
            if len(self._due) > 1:
                await asyncio.wait(self._due)
            results = [await due for due in self._due]
        except asyncio.CancelledError:
            self.cancel()
            raise
        first, position = results[0], None
        if isinstance(first, StepResult) and self._request.options.position is not None:
            position = first.position
        predictions = [result.prediction if isinstance(result, StepResult) else result for result in results]
        outputs = self._model.signature.collect(self._wanted, [prediction.outputs or {} for prediction in predictions])
        return InferReply(self._model.name, self._model.version, self._request.id, outputs, position)
