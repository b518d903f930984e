"""`InferenceCore` over the service: models by name, sequences as its sessions of origin ``oip``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tidegate.api import RAW, Prediction, ReloadReport, SessionInfo, SessionRequest, StepResult, Tensor
from tidegate.engine.lifecycle import Event, Phase
from tidegate.engine.session import LastReply, ended
from tidegate.engine.work import repeats
from tidegate.errors import AlreadyExistsError, NotFoundError, SessionEndedError, TidegateError
from tidegate.transports.oip.core import EngineCounts, Served
from tidegate.transports.oip.sequences.core import Known
from tidegate.transports.oip.sequences.turns import Turns

if TYPE_CHECKING:
    from tidegate.clock import Clock
    from tidegate.config import Settings
    from tidegate.engine.model import LoadedModel
    from tidegate.engine.session import Session
    from tidegate.registry import Registry
    from tidegate.service import Service

ORIGIN = "oip"


class ServiceCore:
    """What the protocol asks of one process's service.

    Args:
        service: Serves what it is asked.
        reload: Reads the bundle directory again, on all workers where there are several; None: the service's own.
    """

    def __init__(self, service: Service, reload: Callable[[], Awaitable[ReloadReport]] | None = None) -> None:
        self._service = service
        self._reload = reload or service.reload
        # Ephemeral sessions, which are nowhere else; a durable one comes and goes, and is asked for at each step.
        self._held: dict[str, Session] = {}
        # Durable sessions of which a step was told that they are over, until they are opened or closed.
        self._missed: set[str] = set()
        self._turns: Turns[str] = Turns()
        self._settings: dict[str, Settings] = {}

    @property
    def settings(self) -> Settings:
        return self._service.settings

    @property
    def clock(self) -> Clock:
        return self._service.clock

    @property
    def is_ready(self) -> bool:
        return self._service.is_ready

    # ---- models

    def served(self, name: str, version: str) -> Served:
        return self._served(self._registry.get(name, version))

    def all_served(self) -> list[Served]:
        return [self._served(model) for model in self._registry]

    def allows_sequences(self, name: str) -> bool:
        return self._settings_of(name).sequences

    def predict_rows(
        self, served: Served, rows: Sequence[tuple[Tensor, ...]], deadline: float | None
    ) -> list[asyncio.Future[Prediction]]:
        model = self._registry.get(*served.key)
        due: list[asyncio.Future[Prediction]] = []
        try:
            for row in rows:
                due.append(self._service.submit_tensors(model, None, row, None, deadline))  # noqa: PERF401
        except TidegateError:
            for each in due:
                each.cancel()
            raise
        return due

    def engine_counts(self, name: str, version: str) -> EngineCounts:
        model = self._registry.find_loaded(name, version)
        if model is None:
            return EngineCounts(0, 0.0)
        return EngineCounts(model.engine.statistics().num_runs, model.loop.run_seconds)

    async def reload(self) -> ReloadReport:
        return await self._reload()

    # ---- sequences

    async def open_sequence(self, model: str, version: str, session: str) -> str:
        durable = self._is_durable(model)
        info = await self._open_new(SessionRequest(model, version or None, durable=durable, id=session, origin=ORIGIN))
        self._missed.discard(session)
        if not durable:
            self._held[session] = await self._service.live_session(session)
        return info.version

    async def _open_new(self, request: SessionRequest) -> SessionInfo:
        """Open a session, in the place of one that a server left behind which was killed, or had other settings."""
        try:
            info = await self._service.open_session(request)
            if not info.position:
                return info
        except AlreadyExistsError:
            pass
        assert request.id is not None
        await self._service.close_session(request.id, Event.RESTART)
        return await self._service.open_session(request)

    async def find_sequence(self, model: str, session: str) -> Known | None:
        if self._is_durable(model):
            known = await self._service.recall_durable(session)
        else:
            known = self._service.recall_ephemeral(session)
        if known is None:
            return None
        return Known(known.version, None if known.last is None else partial(_recall, known.last))

    async def close_sequence(self, session: str, *, is_restart: bool) -> None:
        self._held.pop(session, None)
        self._missed.discard(session)
        try:
            await self._service.close_session(session, Event.RESTART if is_restart else Event.CLOSE)
        except NotFoundError:
            return

    def is_open(self, session: str) -> bool:
        held = self._held.get(session)
        return session not in self._missed if held is None else held.phase is Phase.OPEN

    def step_sequence(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> asyncio.Future[StepResult]:
        held = self._held.get(session)
        if held is None:
            return asyncio.ensure_future(self._step_wherever(session, inputs, position, deadline, ends=ends))
        if held.phase is not Phase.OPEN:
            del self._held[session]
            held.check_open()
        due = self._service.submit_tensors(held.model, held, inputs, position, deadline)
        return asyncio.ensure_future(self._conclude(session, held, due)) if ends else due

    async def _step_wherever(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> StepResult:
        """Step a session that may have to be brought here, or may be over; calls come to it in their order."""
        known = self._service.recall_ephemeral(session)
        try:
            if known is None:
                async with self._turns.of(session):
                    live = await self._service.live_session(session)
                    due = self._service.submit_tensors(live.model, live, inputs, position, deadline, ends=ends)
                return await (self._conclude(session, live, due) if ends else due)
        except (NotFoundError, SessionEndedError):
            known = await self._service.recall_durable(session)
            if known is None or known.last is None:
                self._missed.add(session)
                raise
        if position is not None and known.last is not None:
            again = _recall(known.last, inputs, position)
            if again is not None:
                return again
        self._missed.add(session)
        raise ended(session, Phase.CLOSED)

    async def _conclude(self, session: str, live: Session, due: asyncio.Future[StepResult]) -> StepResult:
        """Wait for the last step. A durable session ended with it, unless it was a repeat of one that ended nothing."""
        result = await due
        if live.phase is Phase.OPEN:
            await self.close_sequence(session, is_restart=False)
        return result

    # ---- inside

    @property
    def _registry(self) -> Registry:
        return self._service.registry

    def _served(self, model: LoadedModel) -> Served:
        name = model.manifest.name
        versions = list(map(str, self._registry.versions(name)))
        return Served(model.manifest, model.bundle.sha256, versions, self._settings_of(name))

    def _is_durable(self, model: str) -> bool:
        return self._settings_of(model).durable

    def _settings_of(self, model: str) -> Settings:
        found = self._settings.get(model)
        if found is None:
            found = self._settings[model] = self.settings.of(model)
        return found


def _recall(last: LastReply, inputs: tuple[Tensor, ...], position: int) -> StepResult | None:
    if not repeats(last, inputs, RAW, position):
        return None
    result: StepResult = last.result
    return result
