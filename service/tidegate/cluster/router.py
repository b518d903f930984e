"""`Core` over the sessions of all workers: a request of a session that another worker holds is passed on to it.

Every transport asks a `Core`, so passing on is done here, once. The outcome, an error too, is the same as if the owner
had been asked itself. Calls that no session's id decides are served where they arrive.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from tidegate.api import (
    CheckpointInfo,
    Core,
    EngineCounts,
    Events,
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
)
from tidegate.client.requests import session_generate_request, step_request
from tidegate.clock import Clock
from tidegate.cluster.peers import KeyedLock, Peer, Peers
from tidegate.config import Settings
from tidegate.errors import TidegateError, UnavailableError, without_traceback
from tidegate.faults import conceal
from tidegate.limits import DEFAULT_PAGE
from tidegate.reply import DirectReply, RowReply, RowsReply, follow
from tidegate.sessions.ids import DURABLE, EPHEMERAL
from tidegate.sessions.snapshot import fork_snapshot
from tidegate.v1 import models_pb2, sessions_pb2
from tidegate.wire.predictions import decode_step
from tidegate.wire.sessions import (
    decode_checkpoint,
    decode_forks,
    decode_session,
    decode_session_page,
    encode_fork_request,
    encode_restore_request,
    encode_session_request,
)


class _SplitGroup:
    """Which sessions of a group are this worker's, by their places; kept, so that they stay one group."""

    def __init__(self, ids: Sequence[str], peers: Peers) -> None:
        self.local: list[int] = []
        self.remote: list[int] = []
        for place, id_ in enumerate(ids):
            (self.local if peers.find_owner(id_) is None else self.remote).append(place)
        self.group = SessionGroup([ids[place] for place in self.local])


class Router:
    """`Core` for all sessions; ``local`` is the core of this worker's own."""

    def __init__(self, local: Core, peers: Peers) -> None:
        self._local = local
        self._peers = peers
        # Calls may overtake each other, steps of a session may not.
        self._locks: KeyedLock[str] = KeyedLock()

    # ---- what no session decides

    @property
    def settings(self) -> Settings:
        return self._local.settings

    @property
    def clock(self) -> Clock:
        return self._local.clock

    @property
    def is_ready(self) -> bool:
        return self._local.is_ready

    @property
    def is_draining(self) -> bool:
        return self._local.is_draining

    @property
    def is_store_away(self) -> bool:
        return self._local.is_store_away

    def statistics(self) -> ServiceStatistics:
        return self._local.statistics()

    def models(self, limit: int = 0, page_token: str = "") -> ModelPage:
        return self._local.models(limit, page_token)

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        return self._local.model(name, version)

    def get_served(self, name: str, version: str = "") -> ServedModel:
        return self._local.get_served(name, version)

    def list_served(self) -> list[ServedModel]:
        return self._local.list_served()

    def count_runs(self, name: str, version: str) -> EngineCounts:
        return self._local.count_runs(name, version)

    async def reload(self) -> ReloadReport:
        """Read the bundle directory again, on every worker; all find the same there, so this one's report tells."""
        report = await self._local.reload()

        async def ask(peer: Peer) -> None:
            await peer.call(peer.models.Reload, models_pb2.ReloadRequest())

        await asyncio.gather(*map(ask, self._peers))
        return report

    async def predict(
        self,
        model: str,
        version: str | None,
        sequences: Sequence[Input],
        options: StepOptions,
        deadline: float | None = None,
    ) -> PredictResult:
        return await self._local.predict(model, version, sequences, options, deadline)

    def predict_tensors(
        self, model: str, version: str, rows: Sequence[tuple[Tensor, ...]], deadline: float | None
    ) -> list[asyncio.Future[Prediction]]:
        return self._local.predict_tensors(model, version, rows, deadline)

    def generate(
        self,
        model: str,
        version: str | None,
        prompt: Input | None,
        sampling: Sampling,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        return self._local.generate(model, version, prompt, sampling, deadline, is_streamed=is_streamed)

    # ---- steps

    def step(
        self,
        session: str,
        source: Input,
        options: StepOptions = StepOptions(),  # noqa: B008
        position: int | None = None,
        deadline: float | None = None,
    ) -> asyncio.Future[StepResult]:
        """Let a chunk wait behind the session's other work, and return at once."""
        peer = self._peers.find_owner(session)
        if peer is None:
            return self._local.step(session, source, options, position, deadline)
        here = partial(self._local.step, session, source, options, position, deadline)
        return asyncio.create_task(self._step(peer, step_request(session, position, source, options), deadline, here))

    def submit_step(
        self,
        session: str,
        source: Input,
        options: StepOptions,
        position: int | None,
        deadline: float | None,
        reply: DirectReply | RowReply,
    ) -> None:
        """Let a chunk wait behind the session's other requests, and return at once; ``reply`` takes its result."""
        if self._peers.find_owner(session) is None:
            self._local.submit_step(session, source, options, position, deadline, reply)
        else:
            follow(self.step(session, source, options, position, deadline), reply)

    def submit_columns(
        self,
        group: SessionGroup,
        rows: Sequence[int],
        steps: RowSteps,
        options: StepOptions,
        deadline: float | None,
        reply: RowsReply,
    ) -> None:
        """Let steps of many sessions wait: those of this worker together, each of the others by itself."""
        split = group.found
        if split is None and any(self._peers.find_owner(id_) is not None for id_ in group.ids):
            split = group.found = _SplitGroup(group.ids, self._peers)
        if not isinstance(split, _SplitGroup):  # all are this worker's
            self._local.submit_columns(group, rows, steps, options, deadline, reply)
            return
        starts = steps.starts()
        if split.local:
            numbers = [rows[place] for place in split.local]
            self._local.submit_columns(split.group, numbers, steps.select(split.local), options, deadline, reply)
        for place in split.remote:
            source, position = steps.of(place, starts)
            try:
                self.submit_step(group.ids[place], source, options, position, deadline, RowReply(reply, rows[place]))
            except Exception as error:  # noqa: BLE001 - it is this row's answer
                reply.put(rows[place], conceal(error))

    async def _step(
        self,
        peer: Peer,
        request: sessions_pb2.StepRequest,
        deadline: float | None,
        here: Callable[[], Awaitable[StepResult]],
    ) -> StepResult:
        async with self._locks.of(request.session):
            try:
                reply = await peer.call(peer.sessions.Step, request, deadline)
            except UnavailableError as error:
                return await self._peers.stand_in(
                    error, request.session, here, is_repeatable=request.HasField("position")
                )
        return decode_step(reply, every_step=request.every_step)

    def generate_on_session(
        self,
        session: str,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None = None,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        """Sample on a session; closing the generator ends the generation, on a peer too."""
        peer = self._peers.find_owner(session)
        here = partial(
            self._local.generate_on_session, session, prompt, sampling, position, deadline, is_streamed=is_streamed
        )
        if peer is None:
            return here()
        request = session_generate_request(session, position, prompt, sampling)
        return self._generate(peer.generate(request, deadline, is_streamed=is_streamed), request, here)

    async def _generate(
        self, far: Events, request: sessions_pb2.SessionGenerateRequest, here: Callable[[], Events]
    ) -> Events:
        """A peer's events; or, where it went away before the first, this worker's."""
        is_repeatable = request.HasField("position")
        try:
            async with aclosing(far):
                async for event in far:
                    is_repeatable = False
                    yield event
            return
        except UnavailableError as error:
            known = partial(self._local.get_session, request.session)
            await self._peers.stand_in(error, request.session, known, is_repeatable=is_repeatable)
        async with aclosing(here()) as near:
            async for event in near:
                yield event

    # ---- from opening to end

    async def open_session(self, request: SessionRequest) -> SessionInfo:
        """Open a session here, or, where the client chose its id, with the worker that the id belongs to."""
        here = partial(self._local.open_session, request)
        # A lifetime of 0 is refused, and a message cannot carry it.
        if request.id is None or 0 in {request.ttl_seconds, request.idle_seconds}:
            return await here()
        message = encode_session_request(request)
        # An ephemeral session that was opened here in the owner's place would not be found again.
        return await self._peers.call_owner(
            request.id, "Open", message, decode_session, here, is_repeatable=request.durable
        )

    async def get_session(self, session: str) -> SessionInfo:
        request = sessions_pb2.GetSessionRequest(session=session)
        return await self._peers.call_owner(
            session, "Get", request, decode_session, partial(self._local.get_session, session)
        )

    async def get_sessions(self, sessions: Sequence[str]) -> list[SessionInfo | TidegateError]:
        """Return each session, or why it cannot be had; peers are asked for each of theirs."""
        here = [id_ for id_ in sessions if self._peers.find_owner(id_) is None]
        there = [id_ for id_ in sessions if self._peers.find_owner(id_) is not None]
        found = dict(zip(here, await self._local.get_sessions(here), strict=True))
        found |= zip(there, await asyncio.gather(*map(self._get_or_error, there)), strict=True)
        return [found[id_] for id_ in sessions]

    async def _get_or_error(self, id_: str) -> SessionInfo | TidegateError:
        try:
            return await self.get_session(id_)
        except TidegateError as error:
            return without_traceback(error)

    async def close_session(self, session: str) -> None:
        request = sessions_pb2.CloseRequest(session=session)
        await self._peers.call_owner(session, "Close", request, _nothing, partial(self._local.close_session, session))

    async def list_sessions(self, limit: int = 0, page_token: str = "") -> SessionPage:
        """Return a page of the live sessions of all workers by rising id; a token is the last id before it."""
        pages = [await self._local.list_sessions(limit, page_token)]
        request = sessions_pb2.ListSessionsRequest(limit=limit, page_token=page_token)

        async def ask(peer: Peer) -> SessionPage:
            return decode_session_page(await peer.call(peer.sessions.List, request))

        pages += await asyncio.gather(*map(ask, self._peers))
        # What is in the store is in every worker's page.
        by_id = {session.id: session for page in reversed(pages) for session in page.sessions}
        found = [by_id[id_] for id_ in sorted(by_id)]
        # Beyond the first of these tokens some worker's page says nothing.
        token = min((page.next_page_token for page in pages if page.next_page_token), default="")
        if token:
            found = [session for session in found if session.id <= token]
        size = limit or DEFAULT_PAGE
        return SessionPage(found[:size], found[size - 1].id if len(found) > size else token)

    # ---- branching

    async def fork_session(
        self,
        session: str,
        ids: Sequence[str] | None = None,
        count: int | None = None,
    ) -> list[SessionInfo]:
        """Fork a session where it is; under chosen ids, with the workers that the ids belong to.

        Each of these forks from the last committed state that it finds; where one id is refused, forks under
        others stay. An ephemeral session reaches another worker as a snapshot.
        """
        owner = self._peers.owner(session)
        by_rank: defaultdict[int, list[str]] = defaultdict(list)
        for chosen in ids or ():
            by_rank[self._peers.owner(chosen)].append(chosen)
        if count or by_rank.keys() <= {owner}:
            return await self._fork(owner, session, ids, count)
        is_durable = await self._is_durable(session)
        forks: list[SessionInfo] = []
        for rank, names in by_rank.items():
            forks += await (
                self._fork(rank, session, names)
                if is_durable or rank == owner
                else self._fork_by_snapshot(session, names)
            )
        by_id = {fork.id: fork for fork in forks}
        return [by_id[chosen] for chosen in ids or ()]

    async def _fork(
        self,
        rank: int,
        session: str,
        ids: Sequence[str] | None,
        count: int | None = None,
    ) -> list[SessionInfo]:
        here = partial(self._local.fork_session, session, ids, count)
        request = encode_fork_request(session, ids, count)
        return await self._peers.call_owner(
            session, "Fork", request, decode_forks, here, rank=rank, is_repeatable=bool(ids)
        )

    async def _is_durable(self, session: str) -> bool:
        if session.startswith((DURABLE, EPHEMERAL)):
            return session.startswith(DURABLE)
        return (await self.get_session(session)).durable

    async def _fork_by_snapshot(self, session: str, ids: Sequence[str]) -> list[SessionInfo]:
        """Fork by way of a snapshot."""
        snapshot = await self.snapshot_session(session)
        return [
            await self.restore_session(fork_snapshot(snapshot, session, chosen), RestoreRequest(chosen))
            for chosen in ids
        ]

    async def checkpoint_session(self, session: str, name: str | None = None) -> CheckpointInfo:
        here = partial(self._local.checkpoint_session, session, name)
        request = sessions_pb2.CheckpointRequest(session=session, name=name or "")
        return await self._peers.call_owner(
            session, "Checkpoint", request, decode_checkpoint, here, is_repeatable=bool(name)
        )

    async def rewind_session(self, session: str, checkpoint: str) -> SessionInfo:
        here = partial(self._local.rewind_session, session, checkpoint)
        request = sessions_pb2.RewindRequest(session=session, checkpoint=checkpoint)
        return await self._peers.call_owner(session, "Rewind", request, decode_session, here)

    async def upgrade_session(self, session: str, version: str | None = None) -> SessionInfo:
        here = partial(self._local.upgrade_session, session, version)
        request = sessions_pb2.UpgradeRequest(session=session, version=version or "")
        return await self._peers.call_owner(session, "Upgrade", request, decode_session, here)

    async def snapshot_session(self, session: str) -> bytes:
        here = partial(self._local.snapshot_session, session)
        return await self._peers.call_owner(
            session, "Snapshot", sessions_pb2.SnapshotRequest(session=session), _snapshot, here
        )

    async def restore_session(self, snapshot: bytes, request: RestoreRequest) -> SessionInfo:
        """Restore a session here, or, where the client chose its id, with the worker that the id belongs to."""
        here = partial(self._local.restore_session, snapshot, request)
        # As in `open_session`.
        if request.id is None or 0 in {request.ttl_seconds, request.idle_seconds}:
            return await here()
        message = encode_restore_request(snapshot, request)
        return await self._peers.call_owner(
            request.id, "Restore", message, decode_session, here, is_repeatable=request.durable
        )

    # ---- sequences, which `cluster.inference` passes on: those of this worker come here

    async def open_sequence(self, model: str, version: str, session: str) -> str:
        return await self._local.open_sequence(model, version, session)

    async def find_sequence(self, model: str, session: str) -> KnownSession | None:
        return await self._local.find_sequence(model, session)

    async def close_sequence(self, session: str, *, is_restart: bool) -> None:
        await self._local.close_sequence(session, is_restart=is_restart)

    def is_open(self, session: str) -> bool:
        return self._local.is_open(session)

    def step_sequence(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> asyncio.Future[StepResult]:
        return self._local.step_sequence(session, inputs, position, deadline, ends=ends)


def _nothing(_: Any) -> None:
    return None


def _snapshot(reply: sessions_pb2.SnapshotReply) -> bytes:
    return reply.snapshot
