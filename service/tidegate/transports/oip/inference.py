"""Inference as the protocol means it, over the core: what both transports convert to and from.

Checks a request against its model, hands its rows to the engine, as steps of a sequence or each from the initial
state, and puts the outputs together. One object serves both transports: a sequence may be begun over one and go on
over the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import GeneratorType
from typing import Any, NamedTuple, Protocol, TypeVar

from tidegate.api import Core, Prediction, ServedModel, StepResult
from tidegate.errors import FailedPreconditionError, NotFoundError, TidegateError
from tidegate.slices import Slices, in_slices
from tidegate.transports.oip import documents
from tidegate.transports.oip.repository import Repository
from tidegate.transports.oip.requests import InferReply, InferRequest, SequenceId, unique
from tidegate.transports.oip.sequences import Key, Sequences, SequenceStep
from tidegate.transports.oip.signature import Row, Signature
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


class LocalPendingReply:
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


Json = dict[str, Any]


class Inference:
    """Everything that a client of the protocol may ask for."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._max_reply = int(core.settings.max_message_mb * (1 << 20))
        self.models: dict[tuple[str, str], Model] = {}
        self.sequences = Sequences(core)
        self.repository = Repository(core)
        self.settings = core.settings
        self._settings_of = cache(core.settings.of)
        self.clock = core.clock
        self.statistics = Statistics(core.count_runs, self.clock)

    @property
    def is_ready(self) -> bool:
        return self._core.is_ready

    async def stop(self) -> None:
        """Abandon the requests whose sequence is just beginning or ending."""
        await self.sequences.stop()

    # ---- inference

    def submit(self, request: InferRequest, seconds: float | None = None, arrived: int | None = None) -> Answer:
        """Hand a request to the engine, and return at once.

        Args:
            request: What is asked.
            seconds: What the transport's own deadline leaves, where there is one.
            arrived: When the request came in, by ``clock.nanoseconds``; None: now.

        Raises:
            TidegateError: The request does not fit its model, or cannot be taken in.
        """
        arrived = self.clock.nanoseconds() if arrived is None else arrived
        model = self._find(request)
        try:
            unique([tensor.name for tensor in request.inputs], "the input")
            unique(request.outputs, "the output")
            fitted = Fitted(request, model)
            due = self._hand_over(fitted, self._deadline(request, seconds))
        except TidegateError:
            self.statistics.failed(model.key, arrived)
            raise
        return LocalPendingReply(self.statistics, fitted, due, arrived, partial(self._explain, request))

    def _find(self, request: InferRequest) -> Model:
        """The model of a request: a running sequence stays on its version, also where that is not offered any more."""
        sequence = request.options.sequence
        if sequence is not None and not request.options.start:
            version = self.sequences.version(Key(request.model, sequence))
            known = None if version is None else self._known(request.model, version)
            if known is not None:
                return known
        return self._model(self._core.get_served(request.model, request.version))

    def _known(self, name: str, version: str) -> Model | None:
        """A version that was asked for before or is offered, else None."""
        known = self.models.get((name, version))
        if known is not None:
            return known
        try:
            return self._model(self._core.get_served(name, version))
        except NotFoundError:
            return None

    def _hand_over(self, fitted: Fitted, deadline: float) -> Sequence[Due]:
        model, sequence = fitted.model, fitted.request.options.sequence
        if sequence is None:
            return self._core.predict_tensors(model.name, model.version, fitted.rows, deadline)
        if not self._settings_of(model.name).sequences:
            raise FailedPreconditionError(
                f"model {model.name} is served without sequences: see its settings", reason="NO_SEQUENCES"
            )
        return self._step(fitted, sequence, deadline)

    def _step(self, fitted: Fitted, sequence: SequenceId, deadline: float) -> Sequence[Due]:
        request = fitted.request
        _, start, end, _, _, position, _ = request.options
        key, refit = Key(request.model, sequence), partial(self._refit, fitted)
        return self.sequences.submit(
            SequenceStep(key, request.version, fitted.rows, start, end, position, deadline, refit)
        )

    def _refit(self, fitted: Fitted, version: str) -> Sequence[Row]:
        """The rows of a request whose sequence turns out to run on this version."""
        model = fitted.model if fitted.model.version == version else self._known(fitted.model.name, version)
        if model is not None and model is not fitted.model:
            fitted.fit(model)
        return fitted.rows

    def _explain(self, request: InferRequest, error: TidegateError) -> TidegateError:
        sequence = request.options.sequence
        return error if sequence is None else self.sequences.explain(Key(request.model, sequence), error)

    def _deadline(self, request: InferRequest, seconds: float | None) -> float:
        timeout = request.options.timeout
        if seconds is None:
            seconds = self.settings.request_timeout if timeout is None else timeout
        elif timeout is not None and timeout < seconds:
            seconds = timeout
        return self.clock.monotonic() + seconds

    def _model(self, served: ServedModel) -> Model:
        known = self.models.get(served.key)
        if known is None or known.sha256 != served.sha256:
            signature = Signature(served.manifest, self._settings_of(served.manifest.name).max_rows, self._max_reply)
            known = self.models[served.key] = Model(*served.key, signature, served.sha256)
        return known

    # ---- what is told

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether the model is offered and requests are welcome."""
        try:
            self._core.get_served(name, version)
        except NotFoundError:
            return False
        return self._core.is_ready

    def metadata(self, name: str, version: str) -> Json:
        """A model's tensors; NotFoundError."""
        served = self._core.get_served(name, version)
        return documents.model_metadata(name, served.versions, self._model(served).signature)

    def config(self, name: str, version: str) -> Json:
        """How a model is served; NotFoundError."""
        served = self._core.get_served(name, version)
        settings, signature = self._settings_of(name), self._model(served).signature
        return documents.model_config(
            *served.key,
            signature,
            settings.idle_seconds,
            has_sequences=settings.sequences,
            said=documents.parameters(served.manifest),
        )

    async def model_statistics(self, name: str = "", version: str = "") -> Json:
        """Counts of one version, of all of one model, or of all models; NotFoundError."""
        if name and version:
            keys = [self._core.get_served(name, version).key]
        elif name:
            keys = [(name, each) for each in self._core.get_served(name, "").versions]
        else:
            keys = [served.key for served in self._core.list_served()]
        return {"model_stats": [self.statistics.document(key) for key in keys]}
