"""The core's face: everything that an ingress may ask for, whatever its protocol.

Finds the model or session, lets the codec encode, hands work to the model's loop. Raises errors of
``tidegate.errors`` only. Cancelling the awaiting task or future, or closing a generator, abandons the work: nothing
of it is committed afterwards.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from tidegate.codecs.tokens import Tokens
from tidegate.config import Settings
from tidegate.core import (
    Ask,
    GeneratedToken,
    GenerationDone,
    Input,
    ModelInfo,
    ModelPage,
    Prediction,
    PredictResult,
    ReloadReport,
    Sampling,
    SessionInfo,
    SessionPage,
    SessionRequest,
    StepResult,
    Tensor,
)
from tidegate.engine.work import Generation, Work
from tidegate.errors import InvalidInputError, NotSupportedError, TooLargeError, UnavailableError
from tidegate.registry import LoadedModel, Registry
from tidegate.sessions.desk import Desk
from tidegate.sessions.session import Session

PAGE_DEFAULT, PAGE_MOST = 100, 1000
MAX_TOKENS_MOST = 100_000
_EXPIRY_SECONDS = 1.0


class Clock(NamedTuple):
    """Two clocks: seconds that only rise, and seconds since the epoch."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class EngineStatistics(NamedTuple):
    """What one loaded model has done, and holds."""

    model: str
    version: str
    provider: str
    num_runs: int
    num_rows: int
    num_steps: int
    num_failed_runs: int
    rows_per_run: dict[int, int]
    run_seconds: float
    queued: int
    arena_slots_used: int
    arena_bytes: int


class ServiceStatistics(NamedTuple):
    """What the whole service has done, and holds; ``ended`` counts sessions by reason."""

    models: list[EngineStatistics]
    num_sessions: int
    ended: dict[str, int]


class Service:
    """Models and sessions behind any number of ingresses. All methods belong to one event loop."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self._clock = clock or Clock()
        self._registry = Registry(settings, self._clock.monotonic)
        self._desk = Desk(settings, self._registry, self._clock)
        self._is_started = False
        self._is_draining = False
        self._reaper: asyncio.Task[None] | None = None
        # Bound once: finding the running loop costs more than making a future of it.
        self._create_future: Callable[[], asyncio.Future[Any]] = _not_started
        self._max_reply = int(settings.max_message_mb * (1 << 20))

    # ---- life

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._is_started and not self._is_draining

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    async def start(self) -> ReloadReport:
        """Load the bundles and begin to serve.

        Raises:
            ConfigurationError: The bundle directory or the provider is not there.
        """
        self._create_future = asyncio.get_running_loop().create_future
        report = await self._registry.reload()
        self._reaper = asyncio.create_task(self._reap_forever(), name="tidegate-expiry")
        self._is_started = True
        return report

    async def drain(self) -> None:
        """Refuse new work and return when all that was taken in is answered."""
        self._is_draining = True
        await asyncio.gather(*(model.loop.wait_idle() for model in self._registry.loaded()))

    async def stop(self) -> None:
        """Stop at once; what is not answered yet is answered with UNAVAILABLE."""
        self._is_draining = True
        if self._reaper is not None:
            self._reaper.cancel()
        await self._registry.stop()

    async def expire(self) -> None:
        """End the sessions whose time is over; a running service does so by itself every second."""
        await self._desk.expire()

    async def _reap_forever(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_SECONDS)
            await self.expire()

    # ---- models

    def models(self, limit: int = 0, page_token: str = "") -> ModelPage:
        """Return a page of the offered models, by name, then version."""
        size = _page_size(limit)
        skip = _offset(page_token)
        some = list(islice(self._registry, skip, skip + size + 1))
        token = str(skip + size) if len(some) > size else ""
        return ModelPage([self._registry.info(model) for model in some[:size]], token)

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        """Return one version, or the highest; NotFoundError."""
        return self._registry.info(self._registry.get(name, version))

    async def reload(self) -> ReloadReport:
        """Read the bundle directory again. Running sessions stay on their version."""
        return await self._registry.reload()

    # ---- stateless

    async def predict(
        self, model: str, version: str | None, sequences: Sequence[Input], ask: Ask, deadline: float | None = None
    ) -> PredictResult:
        """Run whole sequences, of any lengths, each from the initial state.

        Raises:
            InvalidInputError: Naming the sequence by its index; nothing was run.
        """
        self._check_open()
        loaded = self._registry.get(model, version)
        if not sequences:
            raise InvalidInputError("a prediction needs at least one sequence", reason="EMPTY_SEQUENCE")
        encoded = [_encode(loaded, source, index) for index, source in enumerate(sequences)]
        self._check_ask(ask, sum(loaded.codec.reply_bytes(len(inputs[0]), ask) for inputs in encoded))
        futures: list[asyncio.Future[Prediction]] = []
        try:
            for inputs in encoded:
                future = self._create_future()
                loaded.loop.submit(Work(None, inputs, ask, None, deadline, future))
                futures.append(future)
            predictions = await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()
        return PredictResult(loaded.manifest.name, loaded.manifest.version, predictions)

    def generate(
        self,
        model: str,
        version: str | None,
        prompt: Input | None,
        sampling: Sampling,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> AsyncGenerator[GeneratedToken | GenerationDone]:
        """Sample after a prompt, from the initial state; the last event is the end, the only one if not streamed."""
        loaded = self._registry.get(model, version)
        return self._generate(loaded, None, prompt, sampling, None, deadline, is_streamed=is_streamed)

    # ---- sessions

    async def open_session(self, request: SessionRequest) -> SessionInfo:
        """Open a session, or return the one that an equal request with the same id opened.

        Raises:
            AlreadyExistsError: The id is taken by another request.
            OverloadedError: The arena is full and nothing in it may be evicted.
        """
        self._check_open()
        return self._desk.info(self._desk.open(request))

    async def get_session(self, id: str) -> SessionInfo:  # noqa: A002
        """Return the session; NotFoundError, SessionEndedError."""
        return self._desk.info(self._desk.get(id))

    async def list_sessions(self, limit: int = 0, page_token: str = "") -> SessionPage:
        """Return a page of the live sessions by rising id."""
        sessions, token = self._desk.page(_page_size(limit), page_token)
        return SessionPage([self._desk.info(session) for session in sessions], token)

    async def close_session(self, id: str) -> None:  # noqa: A002
        """End the session; closing twice succeeds."""
        await self._desk.close(id)

    def step(
        self,
        session: str,
        source: Input,
        ask: Ask = Ask(),  # noqa: B008
        position: int | None = None,
        deadline: float | None = None,
    ) -> asyncio.Future[StepResult]:
        """Let a chunk wait behind the session's other work, and return at once."""
        self._check_open()
        live = self._desk.get(session)
        model: LoadedModel = live.model
        inputs = model.codec.encode(source)
        self._check_ask(ask, model.codec.reply_bytes(len(inputs[0]), ask))
        future: asyncio.Future[StepResult] = self._create_future()
        model.loop.submit(Work(live, inputs, ask, position, deadline, future))
        self._desk.touch(live)
        return future

    def generate_on_session(
        self,
        session: str,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None = None,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> AsyncGenerator[GeneratedToken | GenerationDone]:
        """Sample on a session, after a prompt or from its last step; every token told is consumed and committed."""
        live = self._desk.get(session)
        return self._generate(live.model, live, prompt, sampling, position, deadline, is_streamed=is_streamed)

    def statistics(self) -> ServiceStatistics:
        """Return counters and gauges for metrics."""
        models = [_statistics(model) for model in self._registry.loaded()]
        return ServiceStatistics(models, self._desk.num_sessions, self._desk.num_ended)

    # ---- inside

    def _check_open(self) -> None:
        if self._is_draining:
            raise UnavailableError("the server is draining", reason="DRAINING", retry_after=1.0)

    def _check_ask(self, ask: Ask, reply_bytes: int) -> None:
        if ask.top < 0:
            raise InvalidInputError(f"top must be at least 0, got {ask.top}", reason="BAD_TOP")
        if reply_bytes > self._max_reply:
            raise TooLargeError(
                f"the reply would have about {reply_bytes >> 20} MiB, over the limit of "
                f"{self.settings.max_message_mb} MiB: send fewer steps, ask for fewer candidates or only the last step",
                reason="REPLY_TOO_LARGE",
            )

    async def _generate(
        self,
        model: LoadedModel,
        session: Session | None,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None,
        deadline: float | None,
        *,
        is_streamed: bool,
    ) -> AsyncGenerator[GeneratedToken | GenerationDone]:
        self._check_open()
        codec = model.codec
        if not isinstance(codec, Tokens):
            raise NotSupportedError(f"{model.label} does not predict tokens, so it cannot generate")
        if session is None and prompt is None:
            raise InvalidInputError("a generation without a session needs a prompt", reason="EMPTY_SEQUENCE")
        _check_sampling(sampling)
        inputs: tuple[Tensor, ...] = () if prompt is None else codec.encode(prompt)
        events: asyncio.Queue[GeneratedToken | GenerationDone | None] = asyncio.Queue()
        reply: asyncio.Future[GenerationDone] = self._create_future()
        if is_streamed:
            reply.add_done_callback(lambda _: events.put_nowait(None))
        seed = sampling.seed if sampling.seed is not None else session.seed if session else secrets.randbits(64)
        work = Generation(
            session,
            inputs,
            sampling,
            seed,
            position,
            deadline,
            reply,
            vocabulary=codec.tokens,
            emit=events.put_nowait if is_streamed else None,
        )
        try:
            model.loop.submit(work)
            if session is not None:
                self._desk.touch(session)
            if not is_streamed:
                yield await reply
                return
            while (event := await events.get()) is not None:
                yield event
            reply.result()
        finally:
            reply.cancel()


def _not_started() -> asyncio.Future[Any]:
    raise UnavailableError("the server is still loading its models", reason="LOADING", retry_after=1.0)


def _encode(model: LoadedModel, source: Input, index: int) -> tuple[Tensor, ...]:
    try:
        return model.codec.encode(source)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"sequence {index}: {error.message}", reason=error.reason, details={**error.details, "sequence": str(index)}
        ) from error


def _check_sampling(sampling: Sampling) -> None:
    problems = {
        f"max_tokens must be 1 to {MAX_TOKENS_MOST}": not 1 <= sampling.max_tokens <= MAX_TOKENS_MOST,
        "temperature must be a finite number of at least 0": not 0 <= sampling.temperature < float("inf"),
        "top_k must be at least 0": sampling.top_k < 0,
        "top_p must be above 0 and at most 1": not 0 < sampling.top_p <= 1,
        "a stop string must not be empty": "" in sampling.stop,
        "seed must be 0 to 2^64 - 1": sampling.seed is not None and not 0 <= sampling.seed < 1 << 64,
    }
    for problem, is_wrong in problems.items():
        if is_wrong:
            raise InvalidInputError(problem, reason="BAD_SAMPLING")


def _page_size(limit: int) -> int:
    if not 0 <= limit <= PAGE_MOST:
        raise InvalidInputError(f"limit must be 0 (for {PAGE_DEFAULT}) to {PAGE_MOST}, got {limit}", reason="BAD_PAGE")
    return limit or PAGE_DEFAULT


def _offset(page_token: str) -> int:
    if page_token and not re.fullmatch(r"[0-9]{1,9}", page_token):
        raise InvalidInputError(f"{page_token!r} is not a page token of this list", reason="BAD_PAGE")
    return int(page_token or 0)


def _statistics(model: LoadedModel) -> EngineStatistics:
    counts = model.engine.statistics()
    return EngineStatistics(
        model=model.manifest.name,
        version=model.manifest.version,
        provider=model.runner.provider,
        num_runs=counts.num_runs,
        num_rows=counts.num_rows,
        num_steps=counts.num_steps,
        num_failed_runs=counts.num_failed_runs,
        rows_per_run=counts.rows_per_run,
        run_seconds=model.loop.run_seconds,
        queued=counts.num_queued,
        arena_slots_used=model.arena.num_used,
        arena_bytes=model.arena.num_used * model.arena.slot_bytes,
    )
