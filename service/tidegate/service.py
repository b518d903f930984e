"""`Core` over one process's registry, sessions and engines.

Finds the model or session, lets the codec encode, hands work to the model's loop.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import cache, partial
from itertools import islice
from typing import Any, cast

import numpy as np

from tidegate.api import (
    RAW,
    CheckpointInfo,
    EngineCounts,
    EngineStatistics,
    GeneratedToken,
    GenerationDone,
    Input,
    KnownSession,
    ModelInfo,
    ModelPage,
    Prediction,
    PredictResult,
    ReloadReport,
    RestoreRequest,
    RowSteps,
    Sampling,
    ServedModel,
    ServiceStatistics,
    SessionGroup,
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
from tidegate.codecs.settings import Given
from tidegate.codecs.tokens import Tokens
from tidegate.config import Settings
from tidegate.engine.lifecycle import Event, Phase
from tidegate.engine.loop import QueueShare
from tidegate.engine.model import LoadedModel
from tidegate.engine.request import Generation, Request, chunk, repeats
from tidegate.engine.session import FoundSessions, LastReply, Session, ended
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    NotSupportedError,
    SessionEndedError,
    TidegateError,
    TooLargeError,
    UnavailableError,
    shown,
)
from tidegate.faults import conceal
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
from tidegate.reply import Reply, RowReply, RowsReply
from tidegate.sessions.ids import SEQUENCE
from tidegate.sessions.manager import SessionManager
from tidegate.sessions.stores.making import make_store
from tidegate.sessions.stores.store import Store
from tidegate.slices import Slices, in_slices

log = logging.getLogger(__name__)

_EXPIRY_SECONDS = 1.0
OIP = "oip"
"""The origin of sessions that are sequences of the Open Inference Protocol."""


class Service:
    """Models and sessions behind any number of transports."""

    def __init__(self, settings: Settings, clock: Clock | None = None, store: Store | None = None) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        self._registry = Registry(settings, self.clock.monotonic)
        store = store or make_store(settings, self.clock)
        self._sessions = SessionManager(settings, self._registry, self.clock, store)
        self._registry.sessions = self._sessions
        # Ephemeral sessions of sequences, which are nowhere else; a durable one comes and goes, and is looked up.
        self._sequences: dict[str, Session] = {}
        # Durable ones of which a step was told that they are over, until they are opened or closed.
        self._ended_sequences: set[str] = set()
        self._settings_of = cache(settings.of)
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

    def models(self, limit: int = 0, page_token: str = "") -> ModelPage:
        """Return a page of the offered models, by name, then version."""
        size = _page_size(limit)
        skip = _offset(page_token)
        some = list(islice(self._registry, skip, skip + size + 1))
        token = str(skip + size) if len(some) > size else ""
        return ModelPage([self._registry.info(model) for model in some[:size]], token)

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        return self._registry.info(self._registry.get(name, version))

    def get_served(self, name: str, version: str = "") -> ServedModel:
        return self._serve(self._registry.get(name, version))

    def list_served(self) -> list[ServedModel]:
        return [self._serve(model) for model in self._registry]

    def _serve(self, model: LoadedModel) -> ServedModel:
        return ServedModel(
            model.manifest, model.bundle.sha256, list(map(str, self._registry.versions(model.manifest.name)))
        )

    def count_runs(self, name: str, version: str) -> EngineCounts:
        model = self._registry.find_loaded(name, version)
        if model is None:
            return EngineCounts(0, 0.0)
        return EngineCounts(model.engine.stats.num_runs, model.loop.run_seconds)

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
        self._check_open()
        loaded = self._registry.get(model, version)
        _check_sequences(sequences)
        encoded = await in_slices(_encode_all(loaded, sequences))
        self._check_options(
            loaded, options, sum(loaded.codec.reply_bytes(len(inputs[0]), options) for inputs, _ in encoded)
        )
        share = QueueShare(self.settings.max_queue)
        futures: list[asyncio.Future[Prediction]] = []
        try:
            for inputs, settings in encoded:
                await share.wait_for_room()
                if share.has_failed:
                    break  # the others would be computed for nobody
                future = self._create_future()
                loaded.loop.submit(chunk(None, inputs, options, None, deadline, future, settings))
                futures.append(future)
                share.take()
                future.add_done_callback(partial(_give_back, share))
            predictions = await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()
        return PredictResult(loaded.manifest.name, loaded.manifest.version, predictions)

    def predict_tensors(
        self, model: str, version: str, rows: Sequence[tuple[Tensor, ...]], deadline: float | None
    ) -> list[asyncio.Future[Prediction]]:
        loaded = self._registry.get(model, version)
        futures: list[asyncio.Future[Prediction]] = []
        try:
            for inputs in rows:
                future = self._create_future()
                self._submit_tensors(loaded, None, inputs, None, deadline, future)
                futures.append(future)
        except TidegateError:
            for future in futures:
                future.cancel()
            raise
        return futures

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
        loaded = self._registry.get(model, version)
        return self._generate(loaded, None, prompt, sampling, None, deadline, is_streamed=is_streamed)

    # ---- sessions

    async def open_session(self, request: SessionRequest) -> SessionInfo:
        self._check_open()
        return await self._sessions.open(request)

    async def get_session(self, session: str) -> SessionInfo:
        """Return the session; NotFoundError, SessionEndedError."""
        return await self._sessions.get_info(session)

    async def get_sessions(self, sessions: Sequence[str]) -> list[SessionInfo | TidegateError]:
        return await self._sessions.get_infos(sessions)

    async def list_sessions(self, limit: int = 0, page_token: str = "") -> SessionPage:
        """Return a page of the sessions by rising id: the ephemeral ones here and all durable ones."""
        size = _page_size(limit)
        _check_page_token(page_token)
        return await self._sessions.get_page(size, page_token)

    async def close_session(self, session: str) -> None:
        await self._sessions.close(session)

    async def fork_session(
        self,
        session: str,
        ids: Sequence[str] | None = None,
        count: int | None = None,
    ) -> list[SessionInfo]:
        self._check_open()
        children = await self._sessions.fork(session, ids, count)
        self._done["fork"] += len(children)
        return children

    async def checkpoint_session(self, session: str, name: str | None = None) -> CheckpointInfo:
        self._check_open()
        made = await self._sessions.checkpoint(session, name)
        self._done["checkpoint"] += 1
        return made

    async def rewind_session(self, session: str, checkpoint: str) -> SessionInfo:
        self._check_open()
        _check_writable(session)
        info = await self._sessions.rewind(session, checkpoint)
        self._done["rewind"] += 1
        return info

    async def upgrade_session(self, session: str, version: str | None = None) -> SessionInfo:
        self._check_open()
        _check_writable(session)
        info = await self._sessions.upgrade(session, version)
        self._done["upgrade"] += 1
        return info

    async def snapshot_session(self, session: str) -> bytes:
        return await self._sessions.snapshot(session)

    async def restore_session(self, snapshot: bytes, request: RestoreRequest) -> SessionInfo:
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
        future: asyncio.Future[StepResult] = self._create_future()
        self.submit_step(session, source, options, position, deadline, future)
        return future

    def submit_step(
        self,
        session: str,
        source: Input,
        options: StepOptions,
        position: int | None,
        deadline: float | None,
        reply: Reply,
    ) -> None:
        self._check_open()
        _check_writable(session)
        live = self._sessions.find(session)
        if live is not None:
            try:
                self._submit_chunk(live, source, options, position, deadline, reply)
            except (InvalidInputError, TooLargeError) as error:
                # What does not fit the copy's model may fit the session's: only the record knows which that is by now.
                if not live.is_durable:
                    live.model.count_refused(error)
                    raise
            else:
                return

        def submit(live: Session) -> None:
            if not reply.done():
                try:
                    self._submit_chunk(live, source, options, position, deadline, reply)
                except TidegateError as error:
                    live.model.count_refused(error)
                    reply.set_exception(error)

        def fail(error: TidegateError) -> None:
            if not reply.done():
                reply.set_exception(error)

        self._sessions.when_loaded(session, submit, fail)

    def _submit_chunk(
        self,
        live: Session,
        source: Input,
        options: StepOptions,
        position: int | None,
        deadline: float | None,
        reply: Reply,
    ) -> None:
        model: LoadedModel = live.model
        check_steps(source.num_steps)
        inputs = model.codec.encode(source)
        self._check_options(model, options, model.codec.reply_bytes(len(inputs[0]), options))
        settings = model.settings.encode(source.inputs)
        model.loop.submit(chunk(live, inputs, options, position, deadline, reply, settings))
        self._sessions.touch(live)

    def submit_columns(
        self,
        group: SessionGroup,
        rows: Sequence[int],
        steps: RowSteps,
        options: StepOptions,
        deadline: float | None,
        reply: RowsReply,
    ) -> None:
        found = self._sessions.find_group(group)
        model: LoadedModel | None = found.model
        inputs: tuple[Tensor, ...] = ()
        settings: Given = ()
        if model is not None and not self._is_draining:
            with suppress(InvalidInputError):  # the row that it is of is told so below
                settings = model.settings.encode(steps.source.inputs)
                inputs = model.codec.encode(steps.source)
        starts = steps.starts()
        alike, other = _find_alike(found, steps.lengths) if inputs else ({}, range(len(rows)))
        for (length, _, _), places in alike.items():
            assert model is not None
            try:
                check_steps(length)
                self._check_options(model, options, model.codec.reply_bytes(length, options))
                for start in range(0, len(places), model.engine.max_rows):
                    some = places[start : start + model.engine.max_rows]
                    request = _rows_request(group, some, rows, steps, starts, inputs, options, deadline, reply)
                    request.settings = settings
                    model.loop.submit(request)
            except TidegateError as error:
                for place in places:
                    reply.put(rows[place], error)
        self._sessions.touch_all(found)
        for place in other:
            source, position = steps.of(place, starts)
            try:
                self.submit_step(group.ids[place], source, options, position, deadline, RowReply(reply, rows[place]))
            except Exception as error:  # noqa: BLE001 - it is this row's answer
                reply.put(rows[place], conceal(error))

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
        _check_writable(session)
        live = self._sessions.find(session)
        # A copy that is here now may have left when the caller asks for the first event.
        if live is None or live.is_durable:
            return self._generate_when_loaded(session, prompt, sampling, position, deadline, is_streamed=is_streamed)
        return self._generate(live.model, live, prompt, sampling, position, deadline, is_streamed=is_streamed)

    async def _generate_when_loaded(
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
        live = await self._sessions.load(session)
        events = self._generate(live.model, live, prompt, sampling, position, deadline, is_streamed=is_streamed)
        async with aclosing(events):
            async for event in events:
                yield event

    # ---- sequences of the Open Inference Protocol

    async def open_sequence(self, model: str, version: str, session: str) -> str:
        durable = self._settings_of(model).durable
        request = SessionRequest(model, version or None, durable=durable, id=session, origin=OIP)
        info: SessionInfo | None = None
        with suppress(AlreadyExistsError):
            info = await self.open_session(request)
        if info is None or info.position:  # a server left it behind that was killed, or that had other settings
            await self._sessions.close(session, Event.RESTART)
            info = await self.open_session(request)
        self._ended_sequences.discard(session)
        if not durable:
            self._sequences[session] = await self._sessions.load(session)
        return info.version

    async def find_sequence(self, model: str, session: str) -> KnownSession | None:
        if self._settings_of(model).durable:
            known = await self._sessions.recall_durable(session)
        else:
            known = self._sessions.recall_ephemeral(session)
        if known is None:
            return None
        return KnownSession(known.version, None if known.last is None else partial(_recall, known.last))

    async def close_sequence(self, session: str, *, is_restart: bool) -> None:
        self._sequences.pop(session, None)
        self._ended_sequences.discard(session)
        with suppress(NotFoundError):
            await self._sessions.close(session, Event.RESTART if is_restart else Event.CLOSE)

    def is_open(self, session: str) -> bool:
        live = self._sequences.get(session)
        return session not in self._ended_sequences if live is None else live.phase is Phase.OPEN

    def step_sequence(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> asyncio.Future[StepResult]:
        live = self._sequences.get(session)
        if live is None:
            return asyncio.ensure_future(self._step_stored(session, inputs, position, deadline, ends=ends))
        if live.phase is not Phase.OPEN:
            del self._sequences[session]
            live.check_open()
        future: asyncio.Future[StepResult] = self._create_future()
        self._submit_tensors(live.model, live, inputs, position, deadline, future)
        return asyncio.ensure_future(self._end_after(future, live)) if ends else future

    async def _step_stored(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> StepResult:
        """Step a session that may have to be loaded, or may be over."""
        known = self._sessions.recall_ephemeral(session)
        try:
            if known is None:
                return await self._step_loaded(session, inputs, position, deadline, ends=ends)
        except (NotFoundError, SessionEndedError):
            known = await self._sessions.recall_durable(session)
            if known is None or known.last is None:
                self._ended_sequences.add(session)
                raise
        if position is not None and known.last is not None:
            again = _recall(known.last, inputs, position)
            if again is not None:
                return again
        self._ended_sequences.add(session)
        raise ended(session, Phase.CLOSED)

    async def _step_loaded(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> StepResult:
        future: asyncio.Future[StepResult] = self._create_future()
        live = self._sessions.find(session)

        def submit(loaded: Session) -> None:
            nonlocal live
            live = loaded
            if not future.done():
                self._submit_tensors(live.model, live, inputs, position, deadline, future, ends=ends)

        def fail(error: TidegateError) -> None:
            if not future.done():
                future.set_exception(error)

        if live is None:
            # Steps that wait for the same session are submitted in the order in which they came.
            self._sessions.when_loaded(session, submit, fail)
        else:
            submit(live)
        result = await future
        return await self._end_after(future, live) if ends and live is not None else result

    async def _end_after(self, last: asyncio.Future[StepResult], live: Session) -> StepResult:
        """Wait for the last step. A durable session ended with it, unless it was a repeat of one that ended nothing."""
        result = await last
        if live.phase is Phase.OPEN:
            await self.close_sequence(live.id, is_restart=False)
        return result

    def _submit_tensors(
        self,
        model: LoadedModel,
        session: Session | None,
        inputs: tuple[Tensor, ...],
        position: int | None,
        deadline: float | None,
        future: asyncio.Future[Any],
        *,
        ends: bool = False,
    ) -> None:
        """Queue the graph's own inputs, each [steps, …], which values of its settings may follow. With ``ends`` a
        durable session ends with the steps, in the same commit.
        """
        self._check_open()
        num_inputs = len(model.manifest.inputs)
        request = chunk(session, inputs[:num_inputs], RAW, position, deadline, future, inputs[num_inputs:])
        request.ends = ends
        model.loop.submit(request)
        if session is not None:
            self._sessions.touch(session)

    def statistics(self) -> ServiceStatistics:
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

    def _check_options(self, model: LoadedModel, options: StepOptions, reply_bytes: int) -> None:
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
        if session is None and (prompt is None or _is_empty(prompt)):
            raise InvalidInputError("a generation without a session needs a prompt", reason="EMPTY_SEQUENCE")
        _check_sampling(sampling)
        check_steps(0 if prompt is None else prompt.num_steps)
        settings = () if prompt is None else model.settings.encode(prompt.inputs)
        inputs: tuple[Tensor, ...] = () if prompt is None or _is_empty(prompt) else model.encode(prompt)
        events: asyncio.Queue[GeneratedToken | GenerationDone | None] = asyncio.Queue()
        reply: asyncio.Future[GenerationDone] = self._create_future()
        if is_streamed:
            reply.add_done_callback(lambda _: events.put_nowait(None))
        seed = sampling.seed if sampling.seed is not None else session.seed if session else secrets.randbits(64)
        request = Generation(
            session,
            inputs,
            sampling,
            seed,
            position,
            deadline,
            reply,
            vocabulary=codec.tokens,
            emit=events.put_nowait if is_streamed else None,
            settings=settings,
        )
        try:
            model.loop.submit(request)
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


def _recall(last: LastReply, inputs: tuple[Tensor, ...], position: int) -> StepResult | None:
    if not repeats(last, inputs, RAW, position):
        return None
    result: StepResult = last.result
    return result


def _find_alike(
    found: FoundSessions, lengths: Sequence[int]
) -> tuple[dict[tuple[int, Request | None, bool], Sequence[int]], Sequence[int]]:
    """Return the rows that may go as one request, by what they have in common (steps, the request that is last in the
    session's queue, durability), and those that must go one by one.
    """
    sessions = found.sessions
    if found.is_uniform and not lengths:
        tails = {session.queue[-1] if session.queue else None for session in cast("Sequence[Session]", sessions)}
        if len(tails) == 1:
            return {(1, tails.pop(), found.is_durable): range(len(sessions))}, ()
    alike: dict[tuple[int, Request | None, bool], list[int]] = {}
    other: list[int] = []
    for row, session in enumerate(sessions):
        if session is None or session.model is not found.model:
            other.append(row)
            continue
        tail = session.queue[-1] if session.queue else None
        alike.setdefault((lengths[row] if lengths else 1, tail, session.is_durable), []).append(row)
    return dict(alike), other


def _rows_request(  # noqa: PLR0913, PLR0917
    group: SessionGroup,
    places: Sequence[int],
    rows: Sequence[int],
    steps: RowSteps,
    starts: Sequence[int],
    inputs: tuple[Tensor, ...],
    options: StepOptions,
    deadline: float | None,
    reply: RowsReply,
) -> Request:
    """Return the request of some of a group's sessions, whose steps are in ``inputs`` [step, …] of all."""
    sessions = cast("Sequence[Session]", group.found.sessions)
    if len(places) == len(sessions) and not starts:
        some = tuple([array[:, None] for array in inputs])
        return Request(sessions, some, options, steps.positions, deadline, reply, lanes=rows, caller=group)
    if starts:
        first = np.array([starts[place] for place in places])
        where = first[:, None] + np.arange(steps.lengths[places[0]])
    else:
        where = np.array(places)[:, None]
    return Request(
        [sessions[place] for place in places],
        tuple([array[where] for array in inputs]),
        options,
        [steps.positions[place] for place in places] if steps.positions else (),
        deadline,
        reply,
        lanes=[rows[place] for place in places],
        caller=group,
    )


def _give_back(share: QueueShare, future: asyncio.Future[Any]) -> None:
    share.give_back(has_failed=future.cancelled() or future.exception() is not None)


def _not_started() -> asyncio.Future[Any]:
    raise UnavailableError("the server is still loading its models", reason="LOADING", retry_after=1.0)


def _check_sequences(sequences: Sequence[Input]) -> None:
    """Raise an error unless a request may hold these sequences, before they are looked at."""
    check_sequences(len(sequences))
    check_steps(sum(source.num_steps for source in sequences))


def _is_empty(prompt: Input) -> bool:
    """Whether a prompt has no sequence, but perhaps settings."""
    return prompt.text is None and prompt.tokens is None and prompt.values is None


def _encode_all(model: LoadedModel, sequences: Sequence[Input]) -> Slices[list[tuple[tuple[Tensor, ...], Given]]]:
    encoded = []
    for index, source in enumerate(sequences):
        encoded.append(_encode(model, source, index))
        yield
    return encoded


def _encode(model: LoadedModel, source: Input, index: int) -> tuple[tuple[Tensor, ...], Given]:
    try:
        return model.encode(source), model.settings.encode(source.inputs)
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
    stats = model.engine.stats
    return EngineStatistics(
        model=model.manifest.name,
        version=model.manifest.version,
        provider=model.runner.provider,
        task=model.manifest.task,
        cell=model.manifest.cell,
        num_runs=stats.num_runs,
        num_rows=stats.num_rows,
        num_steps=stats.num_steps,
        num_failed_runs=stats.num_failed_runs,
        rows_per_run=dict(stats.rows_per_run),
        run_seconds=model.loop.run_seconds,
        queued=model.engine.num_waiting,
        arena_slots_used=model.arena.num_used,
        arena_bytes=model.arena.num_used * model.arena.slot_bytes,
        num_padding_steps=model.runner.num_padding_steps,
        stats=stats.snapshot(),
        quality=model.quality.snapshot(),
    )
