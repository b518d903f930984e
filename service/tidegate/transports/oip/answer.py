"""The reply that a request is due: waited for, put together from its rows, timed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import GeneratorType
from typing import Any, NamedTuple, Protocol, TypeVar

from tidegate.api import Prediction, StepResult
from tidegate.errors import TidegateError
from tidegate.slices import Slices, in_slices
from tidegate.transports.oip.requests import InferReply, InferRequest
from tidegate.transports.oip.signature import Signature
from tidegate.transports.oip.statistics import Statistics, Timing
from tidegate.transports.reply_queue import abandon

Encoded = TypeVar("Encoded")
Due = asyncio.Future[StepResult] | asyncio.Future[Prediction]


class Model(NamedTuple):
    """What a request is checked against and answered by."""

    name: str
    version: str
    signature: Signature
    sha256: str

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.version


class Fitted:
    """A request as the model takes it that answers it: the rows, and the outputs that are wanted.

    Which version that is, a request may only find out when the one before it has begun the sequence, or when a store
    was asked for it: then it is fitted again.
    """

    __slots__ = ("model", "request", "rows", "wanted")

    def __init__(self, request: InferRequest, model: Model) -> None:
        self.request = request
        self.fit(model)

    def fit(self, model: Model) -> None:
        """Take the request as this model does; InvalidInputError or TooLargeError where it does not fit."""
        request, signature = self.request, model.signature
        wanted, rows = signature.wanted(request.outputs), signature.rows(request.inputs)
        signature.check_reply(wanted, rows)
        self.model, self.wanted, self.rows = model, wanted, rows


class Answer(Protocol):
    """A reply that is due, from here or from elsewhere."""

    @property
    def awaited(self) -> asyncio.Future[Any]:
        """What the reply mainly waits for."""

    async def reply(self, encode: Callable[[InferReply], Encoded | Slices[Encoded]]) -> Encoded:
        """Wait for the reply, and return it as ``encode`` writes it, at once or in slices.

        Cancelling this abandons the request.
        """

    def cancel(self) -> None:
        """Abandon the request: what is not committed yet will not be."""


class LocalAnswer:
    """The reply that one request is due."""

    __slots__ = ("_arrived", "_due", "_explain", "_fitted", "_statistics", "_submitted")

    def __init__(
        self,
        statistics: Statistics,
        fitted: Fitted,
        due: Sequence[Due],
        arrived: int,
        explain: Callable[[TidegateError], TidegateError],
    ) -> None:
        self._statistics = statistics
        self._fitted = fitted
        self._due = due
        self._arrived = arrived
        self._explain = explain
        self._submitted = statistics.clock.nanoseconds()

    @property
    def awaited(self) -> Due:
        """What the reply mainly waits for."""
        return self._due[-1]

    async def reply(self, encode: Callable[[InferReply], Encoded | Slices[Encoded]]) -> Encoded:
        statistics, now = self._statistics, self._statistics.clock.nanoseconds
        try:
            reply, answered = await self._wait(), now()
            encoded = encode(reply)
            if isinstance(encoded, GeneratorType):
                encoded = await in_slices(encoded)
        except Exception as error:
            statistics.failed(self._fitted.model.key, self._arrived)
            if isinstance(error, TidegateError):
                raise self._explain(error) from error
            raise
        timing = Timing(self._arrived, self._submitted, answered, now())
        statistics.succeeded(self._fitted.model.key, len(self._due), timing)
        return encoded  # type: ignore[return-value] # no reply is a generator

    def cancel(self) -> None:
        """Abandon the request: what is not committed yet will not be."""
        for due in self._due:
            abandon(due)

    async def _wait(self) -> InferReply:
        try:
            if len(self._due) > 1:
                await asyncio.gather(*self._due, return_exceptions=True)  # which takes note of every row's error
            results = [await due for due in self._due]
        except asyncio.CancelledError:
            self.cancel()
            raise
        fitted, first, position = self._fitted, results[0], None
        request, model = fitted.request, fitted.model
        if isinstance(first, StepResult) and request.options.position is not None:
            position = first.position
        predictions = [result.prediction if isinstance(result, StepResult) else result for result in results]
        outputs = model.signature.collect(fitted.wanted, [prediction.outputs or {} for prediction in predictions])
        return InferReply(model.name, model.version, request.id, outputs, position)
