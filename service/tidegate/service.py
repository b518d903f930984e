"""The core's face: everything that a transport may ask for, whatever its protocol.

Finds the model or session, lets the codec encode, hands work to the model's loop. Raises errors of
``tidegate.errors`` only. Cancelling the awaiting task or future, or closing a generator, abandons the work: nothing
of it is committed afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any, NamedTuple

from tidegate.api import (
    RAW,
    CheckpointInfo,
    GeneratedToken,
    GenerationDone,
    Input,
    ModelInfo,
    ModelPage,
    Prediction,
    PredictResult,
    ReloadReport,
    RestoreRequest,
    Sampling,
    SessionInfo,
    SessionPage,
    SessionRequest,
    StepOptions,
    StepResult,
    Tensor,
    check_sequences,
    check_steps,
)
from tidegate.clock import Clock
from tidegate.codecs.tokens import Tokens
from tidegate.config import Settings
from tidegate.engine.cohort import Cohort, CohortReply
from tidegate.engine.lifecycle import Event
from tidegate.engine.meter import EngineStatsSnapshot
from tidegate.engine.model import LoadedModel
from tidegate.engine.quality import QualitySnapshot
from tidegate.engine.session import Session
from tidegate.engine.share import Share
from tidegate.engine.work import Generation, Work
from tidegate.errors import (
    FailedPreconditionError,
    InvalidInputError,
    NotSupportedError,
    TidegateError,
    TooLargeError,
    UnavailableError,
    shown,
)
from tidegate.limits import (
    DEFAULT_PAGE,
    MAX_CANDIDATES,
    MAX_NAME_LENGTH,
    MAX_PAGE,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_TOKENS,
)
from tidegate.registry import Registry
from tidegate.sessions.committer import StoreStatistics
from tidegate.sessions.endings import Remembered
from tidegate.sessions.ids import SEQUENCE
from tidegate.sessions.manager import SessionManager
from tidegate.sessions.party import Party
from tidegate.sessions.stores.making import make_store
from tidegate.sessions.stores.store import Store
from tidegate.slices import Slices, in_slices

log = logging.getLogger(__name__)

_EXPIRY_SECONDS = 1.0


class EngineStatistics(NamedTuple):
    """What one loaded model has done, and holds."""

    model: str
    version: str
    provider: str
    task: str
    cell: str
    num_runs: int
    num_rows: int
    num_steps: int
    num_failed_runs: int
    rows_per_run: dict[int, int]
    run_seconds: float
    queued: int
    arena_slots_used: int
    arena_bytes: int
    num_padding_steps: int
    meter: EngineStatsSnapshot
    quality: QualitySnapshot


class ServiceStatistics(NamedTuple):
    """What the whole service has done, and holds; ``ended`` counts sessions by reason.

    ``num_sessions`` are those held here, ``num_durable`` of them copies of durable ones; ``num_evicted`` counts such
    copies that left for want of room. ``store`` is None where there is none. ``done`` counts what was done to sessions
    (`fork` and the like) and bundles that were ``loaded`` or ``refused``.
    """

    models: list[EngineStatistics]
    num_sessions: int
    ended: dict[str, int]
    num_durable: int = 0
    num_evicted: int = 0
    store: StoreStatistics | None = None
    done: Mapping[str, int] = {}


class Service:
    """Models and sessions behind any number of transports. All methods belong to one event loop.

    Deadlines are seconds of ``clock.monotonic``.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None, store: Store | None = None) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        self._registry = Registry(settings, self.clock.monotonic)
        store = store or make_store(settings, self.clock)
        self._sessions = SessionManager(settings, self._registry, self.clock, store)
        self._registry.sessions = self._sessions
        self._done: Counter[str] = Counter()
        self._is_started = False
        self._is_draining = False
        self._reaper: asyncio.Task[None] | None = None
        # Bound once: finding the running loop costs more than making a future of it.
        self._create_future: Callable[[], asyncio.Future[Any]] = _not_started
        self._max_reply = int(settings.max_message_mb * (1 << 20))

    # ---- life

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome; not while the store of durable sessions is away."""
        return self._is_started and not self._is_draining and self._sessions.is_store_available

    @property
    def is_store_away(self) -> bool:
        """Whether there is a store of durable sessions that does not answer."""
        return self._is_started and not self._sessions.is_store_available

    async def readiness_changed(self) -> None:
        """Return when `is_ready` may have changed by itself, for the store went or came back."""
        await self._sessions.store_changed()

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    async def start(self) -> ReloadReport:
        """Load the bundles and begin to serve.

        Raises:
            ConfigurationError: The bundle directory or the provider is not there, or the store can never work.
        """
        self._create_future = asyncio.get_running_loop().create_future
        await self._sessions.start()
        report = await self.reload()
        self._reaper = asyncio.create_task(self._reap_forever(), name="tidegate-expiry")
        self._is_started = True
        return report

    async def drain(self) -> None:
        """Refuse new work and return when all that was taken in is answered."""
        self._is_draining = True
        await self._sessions.wait_idle()
        await asyncio.gather(*(model.loop.wait_idle() for model in self._registry.loaded()))

    async def abort(self) -> None:
        """Answer everything that runs or waits with UNAVAILABLE, now; `stop` is still to come."""
        self._is_draining = True
        await self._registry.stop()

    async def stop(self) -> None:
        """Stop at once; what is not answered yet is answered with UNAVAILABLE."""
        self._is_draining = True
        if self._reaper is not None:
            self._reaper.cancel()
        await self._registry.stop()
        await self._sessions.stop()

    async def expire(self) -> None:
        """End the sessions whose time is over; a running service does so by itself every second."""
        await self._sessions.expire()
        await self._registry.retire()

    async def _reap_forever(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_SECONDS)
            try:
                await self.expire()
            except Exception:
                log.exception("sessions could not be expired")

    # ---- models

    @property
    def registry(self) -> Registry:
        """The models that are loaded, for who submits tensors to them."""
        return self._registry

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
        report = await self._registry.reload()
        self._done["loaded"] += len(report.loaded)
        self._done["refused"] += len(report.refused)
        return report

    # ---- stateless

    async def predict(
        self,
        model: str,
        version: str | None,
        sequences: Sequence[Input],
        options: StepOptions,
        deadline: float | None = None,
    ) -> PredictResult:
        """Run whole sequences, of any lengths, each from the initial state.

        Raises:
            InvalidInputError: Naming the sequence by its index; nothing was run.
        """
        self._check_open()
        loaded = self._registry.get(model, version)
        _check_sequences(sequences)
        encoded = await in_slices(_encode_all(loaded, sequences))
        self._check_ask(loaded, options, sum(loaded.codec.reply_bytes(len(inputs[0]), options) for inputs in encoded))
        share = Share(self.settings.max_queue)
        futures: list[asyncio.Future[Prediction]] = []
        try:
            for inputs in encoded:
                await share.room()
                if share.has_failed:
                    break  # the others would be computed for nobody
                future = self._create_future()
                loaded.loop.submit(Work(None, inputs, options, None, deadline, future))
                futures.append(future)
                share.take(future)
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
            FailedPreconditionError: It is to be durable, and there is no store.
        """
        self._check_open()
        return await self._sessions.open(request)

    async def get_session(self, id: str) -> SessionInfo:  # noqa: A002
        """Return the session; NotFoundError, SessionEndedError."""
        return await self._sessions.get_info(id)

    async def get_sessions(self, ids: Sequence[str]) -> list[SessionInfo | TidegateError]:
        """Return each session, or why it cannot be had; those that are not here are one question for the store.

        The caller bounds their number.
        """
        return await self._sessions.get_infos(ids)

    async def list_sessions(self, limit: int = 0, page_token: str = "") -> SessionPage:
        """Return a page of the sessions by rising id: the ephemeral ones here and all durable ones."""
        size = _page_size(limit)
        _check_page_token(page_token)
        return await self._sessions.get_page(size, page_token)

    async def close_session(self, id: str, event: Event = Event.CLOSE) -> None:  # noqa: A002
        """End the session; closing twice succeeds."""
        await self._sessions.close(id, event)

    async def fork_session(
        self,
        id: str,  # noqa: A002
        ids: Sequence[str] | None = None,
        count: int | None = None,
    ) -> list[SessionInfo]:
        """Open sessions that go on from where this one is: with ``ids``, or ``count`` of them, one where neither is
        given. An equal repeat with ids returns what exists.

        Raises:
            AlreadyExistsError: An id is taken by another session.
        """
        self._check_open()
        children = await self._sessions.fork(id, ids, count)
        self._done["fork"] += len(children)
        return children

    async def checkpoint_session(self, id: str, name: str | None = None) -> CheckpointInfo:  # noqa: A002
        """Keep where the session is under a name; the oldest of more than eight is dropped."""
        self._check_open()
        made = await self._sessions.checkpoint(id, name)
        self._done["checkpoint"] += 1
        return made

    async def rewind_session(self, id: str, checkpoint: str) -> SessionInfo:  # noqa: A002
        """Take the session back to a checkpoint, which stays; NotFoundError where there is none of that name."""
        self._check_open()
        _check_writable(id)
        info = await self._sessions.rewind(id, checkpoint)
        self._done["rewind"] += 1
        return info

    async def upgrade_session(self, id: str, version: str | None = None) -> SessionInfo:  # noqa: A002
        """Move the session to a version of its model, the highest where None.

        Raises:
            FailedPreconditionError: Its states have other names, dtypes or shapes.
        """
        self._check_open()
        _check_writable(id)
        info = await self._sessions.upgrade(id, version)
        self._done["upgrade"] += 1
        return info

    async def snapshot_session(self, id: str) -> bytes:  # noqa: A002
        """Return the session as portable bytes."""
        return await self._sessions.snapshot(id)

    async def restore_session(self, snapshot: bytes, request: RestoreRequest) -> SessionInfo:
        """Open a session from a snapshot; an equal repeat with an id returns what exists.

        Raises:
            InvalidInputError: The bytes are not a snapshot, or were altered.
            FailedPreconditionError: Its model is not here in that version, with that content, or has no chart.
        """
        self._check_open()
        info = await self._sessions.restore(snapshot, request)
        self._done["restore"] += 1
        return info

    def step(
        self,
        session: str,
        source: Input,
        options: StepOptions = StepOptions(),  # noqa: B008
        position: int | None = None,
        deadline: float | None = None,
    ) -> asyncio.Future[StepResult]:
        """Let a chunk wait behind the session's other work, and return at once."""
        self._check_open()
        _check_writable(session)
        future: asyncio.Future[StepResult] = self._create_future()
        live = self._sessions.find(session)
        if live is not None:
            try:
                self._submit_step(live, source, options, position, deadline, future)
            except (InvalidInputError, TooLargeError) as error:
                # What does not fit the copy's model may fit the session's: only the record knows which that is by now.
                if not live.is_durable:
                    live.model.count_refused(error)
                    raise
            else:
                return future

        def submit(live: Session) -> None:
            if not future.done():
                try:
                    self._submit_step(live, source, options, position, deadline, future)
                except TidegateError as error:
                    live.model.count_refused(error)
                    future.set_exception(error)

        def fail(error: TidegateError) -> None:
            if not future.done():
                future.set_exception(error)

        self._sessions.when_loaded(session, submit, fail)
        return future

    def _submit_step(
        self,
        live: Session,
        source: Input,
        options: StepOptions,
        position: int | None,
        deadline: float | None,
        future: asyncio.Future[StepResult],
    ) -> None:
        model: LoadedModel = live.model
        check_steps(source.num_steps)
        inputs = model.codec.encode(source)
        self._check_ask(model, options, model.codec.reply_bytes(len(inputs[0]), options))
        model.loop.submit(Work(live, inputs, options, position, deadline, future))
        self._sessions.touch(live)

    def step_together(
        self, party: Party, source: Input, options: StepOptions, positions: Sequence[int], deadline: float | None
    ) -> asyncio.Future[CohortReply] | None:
        """Let one step of each session of a party wait as one piece of work, and return at once; None where that cannot
        be, and each is to be stepped by itself: then nothing was done.

        Args:
            party: At least two sessions.
            source: A step of each, one after the other.
            options: What each reply shall hold.
            positions: Of each session, where they are given; else empty.
            deadline: As of `step`.
        """
        if (
            self._is_draining
            or options.every_step
            or options.is_raw
            or not 0 <= options.top <= MAX_CANDIDATES
            or not self._sessions.find_together(party)
        ):
            return None
        model: LoadedModel | None = party.model
        if model is None or model.codec.reply_bytes(1, options) > self._max_reply:
            return None
        try:
            inputs = model.codec.encode(source)
        except InvalidInputError:  # which the lane that it is of will be told
            return None
        future: asyncio.Future[CohortReply] = self._create_future()
        together = tuple(array[:, None] for array in inputs)
        if not model.loop.submit_together(Cohort(party, together, options, positions, deadline, future)):
            return None
        self._sessions.touch_together(party)
        return future

    def submit_tensors(
        self,
        model: LoadedModel,
        session: Session | None,
        inputs: tuple[Tensor, ...],
        position: int | None = None,
        deadline: float | None = None,
        *,
        ends: bool = False,
    ) -> asyncio.Future[Any]:
        """Let the graph's own inputs, each [steps, …], wait for a run, of a session or of none, and return at once.

        The result, a ``StepResult`` or a ``Prediction``, holds the graph's outputs of every step, unread by the codec.
        With ``ends`` a durable session ends with the steps, in the same commit.
        """
        self._check_open()
        future: asyncio.Future[Any] = self._create_future()
        work = Work(session, inputs, RAW, position, deadline, future)
        work.ends = ends
        model.loop.submit(work)
        if session is not None:
            self._sessions.touch(session)
        return future

    def recall_ephemeral(self, id: str) -> Remembered | None:  # noqa: A002
        """Return what is remembered of a sequence that its client ended here, for a repeat of its last request."""
        return self._sessions.recall_ephemeral(id)

    async def recall_durable(self, id: str) -> Remembered | None:  # noqa: A002
        """Return what is stored of a session that runs, or that its client ended with a step; None of any other."""
        return await self._sessions.recall_durable(id)

    async def live_session(self, id: str) -> Session:  # noqa: A002
        """Return the session; its copy may leave again as soon as the caller waits for anything else."""
        return await self._sessions.load(id)

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
        _check_writable(session)
        live = self._sessions.find(session)
        # A copy that is here now may have left when the caller asks for the first event.
        if live is None or live.is_durable:
            return self._generate_elsewhere(session, prompt, sampling, position, deadline, is_streamed=is_streamed)
        return self._generate(live.model, live, prompt, sampling, position, deadline, is_streamed=is_streamed)

    async def _generate_elsewhere(
        self,
        session: str,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None,
        deadline: float | None,
        *,
        is_streamed: bool,
    ) -> AsyncGenerator[GeneratedToken | GenerationDone]:
        """Generate on a session that may have to be brought here first."""
        self._check_open()
        live = await self.live_session(session)
        events = self._generate(live.model, live, prompt, sampling, position, deadline, is_streamed=is_streamed)
        async with aclosing(events):
            async for event in events:
                yield event

    def statistics(self) -> ServiceStatistics:
        """Return counters and gauges for metrics."""
        models = [_statistics(model) for model in self._registry.loaded()]
        return ServiceStatistics(
            models,
            self._sessions.num_sessions,
            self._sessions.num_ended,
            self._sessions.num_copies,
            self._sessions.num_evicted,
            self._sessions.store_statistics(),
            dict(self._done),
        )

    # ---- inside

    def _check_open(self) -> None:
        if self._is_draining:
            raise UnavailableError("the server is draining", reason="DRAINING", retry_after=1.0)

    def _check_ask(self, model: LoadedModel, options: StepOptions, reply_bytes: int) -> None:
        if options.top < 0:
            raise InvalidInputError(f"top must be at least 0, got {options.top}", reason="BAD_TOP")
        if (
            options.top > MAX_CANDIDATES
            and isinstance(model.codec, Tokens)
            and len(model.codec.tokens) > MAX_CANDIDATES
        ):
            raise InvalidInputError(f"top must be at most {MAX_CANDIDATES}, got {options.top}", reason="BAD_TOP")
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
        check_steps(0 if prompt is None else prompt.num_steps)
        inputs: tuple[Tensor, ...] = () if prompt is None else model.encode(prompt)
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
                self._sessions.touch(session)
            if not is_streamed:
                yield await reply
                return
            while (event := await events.get()) is not None:
                yield event
            reply.result()
        finally:
            reply.cancel()


def _check_writable(id_: str) -> None:
    if id_.startswith(SEQUENCE):
        raise FailedPreconditionError(
            f"{id_} is a sequence of the Open Inference Protocol: step it there", reason="OIP_SEQUENCE"
        )


def _not_started() -> asyncio.Future[Any]:
    raise UnavailableError("the server is still loading its models", reason="LOADING", retry_after=1.0)


def _check_sequences(sequences: Sequence[Input]) -> None:
    """Raise an error unless a request may hold these sequences, before they are looked at."""
    check_sequences(len(sequences))
    check_steps(sum(source.num_steps for source in sequences))


def _encode_all(model: LoadedModel, sequences: Sequence[Input]) -> Slices[list[tuple[Tensor, ...]]]:
    encoded = []
    for index, source in enumerate(sequences):
        encoded.append(_encode(model, source, index))
        yield
    return encoded


def _encode(model: LoadedModel, source: Input, index: int) -> tuple[Tensor, ...]:
    try:
        return model.encode(source)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"sequence {index}: {error.message}", reason=error.reason, details={**error.details, "sequence": str(index)}
        ) from error


def _check_sampling(sampling: Sampling) -> None:
    problems = {
        f"max_tokens must be 1 to {MAX_TOKENS}": not 1 <= sampling.max_tokens <= MAX_TOKENS,
        "temperature must be a finite number of at least 0": not 0 <= sampling.temperature < float("inf"),
        "top_k must be at least 0": sampling.top_k < 0,
        "top_p must be above 0 and at most 1": not 0 < sampling.top_p <= 1,
        f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(sampling.stop)}": len(sampling.stop)
        > MAX_STOP_STRINGS,
        f"a stop string has 1 to {MAX_STOP_LENGTH} characters": not _are_stops(sampling.stop[:MAX_STOP_STRINGS]),
        "seed must be 0 to 2^64 - 1": sampling.seed is not None and not 0 <= sampling.seed < 1 << 64,
    }
    for problem, is_wrong in problems.items():
        if is_wrong:
            raise InvalidInputError(problem, reason="BAD_SAMPLING")


def _are_stops(stops: Sequence[str]) -> bool:
    return all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops)


def _page_size(limit: int) -> int:
    if not 0 <= limit <= MAX_PAGE:
        raise InvalidInputError(f"limit must be 0 (for {DEFAULT_PAGE}) to {MAX_PAGE}, got {limit}", reason="BAD_PAGE")
    return limit or DEFAULT_PAGE


def _check_page_token(page_token: str) -> None:
    if len(page_token) > MAX_NAME_LENGTH:
        raise InvalidInputError(f"{shown(page_token)} is not a page token of this list", reason="BAD_PAGE")


def _offset(page_token: str) -> int:
    if page_token and not re.fullmatch(r"[0-9]{1,9}", page_token):
        raise InvalidInputError(f"{shown(page_token)} is not a page token of this list", reason="BAD_PAGE")
    return int(page_token or 0)


def _statistics(model: LoadedModel) -> EngineStatistics:
    counts = model.engine.statistics()
    return EngineStatistics(
        model=model.manifest.name,
        version=model.manifest.version,
        provider=model.runner.provider,
        task=model.manifest.task,
        cell=model.manifest.cell,
        num_runs=counts.num_runs,
        num_rows=counts.num_rows,
        num_steps=counts.num_steps,
        num_failed_runs=counts.num_failed_runs,
        rows_per_run=counts.rows_per_run,
        run_seconds=model.loop.run_seconds,
        queued=counts.num_queued,
        arena_slots_used=model.arena.num_used,
        arena_bytes=model.arena.num_used * model.arena.slot_bytes,
        num_padding_steps=model.runner.num_padding_steps,
        meter=model.engine.meter.snapshot(),
        quality=model.quality.snapshot(),
    )
