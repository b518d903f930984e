"""The fake of `Core`, for tests of transports, client and cluster: answers by rule and remembers what it was asked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tests.clock import ManualClock
from tests.service.fake_sequences import FakeSequences
from tidegate.api import (
    Candidate,
    CheckpointInfo,
    ColumnInfo,
    DriftReport,
    EngineCounts,
    Events,
    GeneratedToken,
    GenerationDone,
    Input,
    ModelInfo,
    ModelPage,
    Prediction,
    PredictResult,
    Refusal,
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
    SettingInfo,
    StepOptions,
    StepResult,
    Surprise,
    SurpriseReport,
    Tensor,
    TensorInfo,
)
from tidegate.clock import Clock
from tidegate.config import Settings, load_settings
from tidegate.errors import NotFoundError, NotSupportedError, PositionConflictError, TidegateError
from tidegate.faults import conceal
from tidegate.reply import DirectReply, RowReply, RowsReply, follow
from tidegate.sessions.snapshot import Body, decode_snapshot, encode_snapshot

MODEL = ModelInfo(
    name="echo",
    version="2",
    versions=["1", "2"],
    task="next_token",
    cell="lstm",
    inputs=[TensorInfo("tokens", "int64", ["batch", "time"], None, "letters")],
    outputs=[TensorInfo("logits", "float32", ["batch", "time", "65"])],
    features=["load", "hour"],
    state_bytes=128,
    surprise_unit="bits",
    batch_invariant=True,
    sha256="ab" * 32,
    provider="CPUExecutionProvider",
    surprise=SurpriseReport(2.25, 640),
    drift=DriftReport("drift", 3.5, 5, 128, 2.0, 0.25, (1.75, 2.25), (1.5, 2.75)),
    settings=[SettingInfo("limit", "float32", [], [6.0], "dB"), SettingInfo("speaker", "float32", [2], [0.5, -1.0])],
    sample_rate=44100.0,
    frame_length=512,
    columns=[ColumnInfo("load", "MW", "of the grid")],
)
OPENED = 1_700_000_000.25


class StepCall(NamedTuple):
    session: str
    input: Input
    options: StepOptions
    position: int | None
    deadline: float | None


class GenerateCall(NamedTuple):
    prompt: Input | None
    sampling: Sampling
    position: int | None
    deadline: float | None


@dataclass
class FakeCore(FakeSequences):
    """`echo`: the most probable next token is the last token, its surprise is the position after the step.

    With ``is_holding`` steps wait until `release`. What fails is said in ``failures`` (raised by any call that names
    the session or model) and ``late_failures`` (the step's future fails), once for each error listed.
    """

    settings: Settings = field(default_factory=lambda: load_settings({}))
    time: ManualClock = field(default_factory=ManualClock)
    is_ready: bool = True
    is_draining: bool = False
    is_store_away: bool = False
    sessions: dict[str, SessionInfo] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    late_failures: dict[str, list[Exception]] = field(default_factory=dict)
    steps: list[StepCall] = field(default_factory=list)
    generations: list[GenerateCall] = field(default_factory=list)
    opened: list[SessionRequest] = field(default_factory=list)
    checkpoints: dict[tuple[str, str], int] = field(default_factory=dict)
    branched: list[tuple[object, ...]] = field(default_factory=list)
    restored: list[tuple[bytes, RestoreRequest]] = field(default_factory=list)
    predicted: list[tuple[str, str | None, Sequence[Input], StepOptions]] = field(default_factory=list)
    num_reloads: int = 0
    counted: ServiceStatistics = field(default_factory=lambda: ServiceStatistics([], 0, {}))
    asked: list[int] = field(default_factory=list)
    waiting: list[tuple[asyncio.Future[StepResult], StepResult]] = field(default_factory=list)
    submitted: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    @property
    def clock(self) -> Clock:
        return self.time.clock()

    def statistics(self) -> ServiceStatistics:
        return self.counted

    def add_sessions(self, *names: str, model: str = "echo") -> None:
        for name in names:
            self.sessions[name] = SessionInfo(name, model, "2", 0, False, OPENED, None, 128)

    def models(self, limit: int = 0, page_token: str = "") -> ModelPage:
        self._fail("models")
        pages = [replace(MODEL, version="1"), MODEL]
        start = int(page_token or 0)
        return ModelPage(pages[start : start + 1], "1" if start == 0 else "")

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        self._fail(name)
        return replace(MODEL, name=name, version=version or MODEL.version)

    async def reload(self) -> ReloadReport:
        self.num_reloads += 1
        return ReloadReport(["echo/3"], ["echo/1"], [Refusal("broken/1", "CHECKSUM_MISMATCH", "checksum differs")])

    def get_served(self, name: str, version: str = "") -> ServedModel:
        raise NotFoundError(f"unknown model {name}: this fake has no manifests", reason="UNKNOWN_MODEL")

    def list_served(self) -> list[ServedModel]:
        return []

    def count_runs(self, name: str, version: str) -> EngineCounts:
        return EngineCounts(0, 0.0)

    def predict_tensors(
        self, model: str, version: str, rows: Sequence[tuple[Tensor, ...]], deadline: float | None
    ) -> list[asyncio.Future[Prediction]]:
        raise NotSupportedError("this fake has no tensors")

    async def predict(
        self,
        model: str,
        version: str | None,
        sequences: Sequence[Input],
        options: StepOptions,
        deadline: float | None = None,
    ) -> PredictResult:
        self._fail(model)
        self.predicted.append((model, version, sequences, options))
        if self.is_holding:
            await self._hold(model)
        return PredictResult(model, version or "2", [predict(each, options, 0) for each in sequences])

    async def generate(
        self,
        model: str,
        version: str | None,
        prompt: Input | None,
        sampling: Sampling,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        self.generations.append(GenerateCall(prompt, sampling, None, deadline))
        self._fail(model)
        async for event in self._generate(model, length(prompt), sampling):
            if is_streamed or isinstance(event, GenerationDone):
                yield event

    async def open_session(self, request: SessionRequest) -> SessionInfo:
        self._fail(request.model)
        self.opened.append(request)
        name = request.id or f"s{len(self.sessions)}"
        expires = OPENED + request.ttl_seconds if request.ttl_seconds else None
        self.sessions[name] = SessionInfo(name, request.model, "2", 0, request.durable, OPENED, expires, 128)
        return self.sessions[name]

    async def get_session(self, session: str) -> SessionInfo:
        self._fail(session)
        if session not in self.sessions:
            raise NotFoundError(f"unknown session {session}", reason="UNKNOWN_SESSION")
        return self.sessions[session]

    async def get_sessions(self, sessions: Sequence[str]) -> list[SessionInfo | TidegateError]:
        self.asked.append(len(sessions))
        return [await self._get_or_error(each) for each in sessions]

    async def _get_or_error(self, id_: str) -> SessionInfo | TidegateError:
        try:
            return await self.get_session(id_)
        except TidegateError as error:
            return error

    async def list_sessions(self, limit: int = 0, page_token: str = "") -> SessionPage:
        size = limit or 2
        names = sorted(name for name in self.sessions if name > page_token)
        shown = names[:size]
        return SessionPage([self.sessions[name] for name in shown], shown[-1] if names[size:] else "")

    async def close_session(self, session: str) -> None:
        self._fail(session)
        self.sessions.pop(session, None)

    async def fork_session(
        self,
        session: str,
        ids: Sequence[str] | None = None,
        count: int | None = None,
    ) -> list[SessionInfo]:
        self.branched.append(("fork", session, ids, count))
        source = await self.get_session(session)
        names = ids or [f"{session}-fork{len(self.sessions) + number}" for number in range(count or 1)]
        forks = [source._replace(id=name, checkpoints=()) for name in names]
        self.sessions.update((fork.id, fork) for fork in forks)
        return forks

    async def checkpoint_session(self, session: str, name: str | None = None) -> CheckpointInfo:
        self.branched.append(("checkpoint", session, name))
        info = await self.get_session(session)
        name = name or f"c{len(info.checkpoints)}"
        self.checkpoints[session, name] = info.position
        self.sessions[session] = info._replace(checkpoints=(*info.checkpoints, name))
        return CheckpointInfo(name, info.position)

    async def rewind_session(self, session: str, checkpoint: str) -> SessionInfo:
        self.branched.append(("rewind", session, checkpoint))
        info = await self.get_session(session)
        if (session, checkpoint) not in self.checkpoints:
            raise NotFoundError(f"no checkpoint {checkpoint}", reason="UNKNOWN_CHECKPOINT")
        self.sessions[session] = info._replace(position=self.checkpoints[session, checkpoint])
        return self.sessions[session]

    async def upgrade_session(self, session: str, version: str | None = None) -> SessionInfo:
        self.branched.append(("upgrade", session, version))
        self.sessions[session] = (await self.get_session(session))._replace(version=version or MODEL.versions[-1])
        return self.sessions[session]

    async def snapshot_session(self, session: str) -> bytes:
        self.branched.append(("snapshot", session))
        info = await self.get_session(session)
        return encode_snapshot(Body(model=info.model, version=info.version, position=info.position))

    async def restore_session(self, snapshot: bytes, request: RestoreRequest) -> SessionInfo:
        self.restored.append((snapshot, request))
        self._fail("restore")
        body = decode_snapshot(snapshot)
        name = request.id or f"s{len(self.sessions)}"
        self.sessions[name] = SessionInfo(
            name, body.model, body.version, body.position, request.durable, OPENED, None, 128
        )
        return self.sessions[name]

    def step(
        self,
        session: str,
        source: Input,
        options: StepOptions = StepOptions(),  # noqa: B008 - the core's default
        position: int | None = None,
        deadline: float | None = None,
    ) -> asyncio.Future[StepResult]:
        self.steps.append(StepCall(session, source, options, position, deadline))
        self._fail(session)
        info = self.sessions[session]
        if position is not None and position != info.position:
            raise PositionConflictError(f"the session is at {info.position}", position=info.position)
        result = StepResult(session, info.position + length(source), predict(source, options, info.position))
        future: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: self.cancelled.put_nowait(session) if done.cancelled() else None)
        if self.late_failures.get(session):
            future.set_exception(self.late_failures[session].pop(0))
            return future
        self.sessions[session] = info._replace(position=result.position)
        self.waiting.append((future, result))
        if not self.is_holding:
            self.release()
        self.submitted.put_nowait(session)
        return future

    def submit_step(
        self,
        session: str,
        source: Input,
        options: StepOptions,
        position: int | None,
        deadline: float | None,
        reply: DirectReply | RowReply,
    ) -> None:
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
        """Nothing goes together here: what does is tested over the core itself."""
        for place, id_ in enumerate(group.ids):
            source, position = steps.of(place, steps.starts())
            try:
                self.submit_step(id_, source, options, position, deadline, RowReply(reply, rows[place]))
            except Exception as error:  # noqa: BLE001 - it is this row's answer
                reply.put(rows[place], conceal(error))

    async def generate_on_session(
        self,
        session: str,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None = None,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        self.generations.append(GenerateCall(prompt, sampling, position, deadline))
        self._fail(session)
        info = self.sessions[session]
        async for event in self._generate(session, info.position + length(prompt), sampling):
            self.sessions[session] = info._replace(position=event.position)
            if is_streamed or isinstance(event, GenerationDone):
                yield event

    def release(self) -> None:
        """Answer every step that waits."""
        waiting, self.waiting = self.waiting, []
        for future, result in waiting:
            if not future.done():
                future.set_result(result)

    async def _generate(self, name: str, start: int, sampling: Sampling) -> Events:
        """The letters from "a"; with ``is_holding`` it stops after the first until it is cancelled."""
        tokens = list(range(sampling.max_tokens))
        for token in tokens:
            yield GeneratedToken(token, chr(97 + token), start + token + 1)
            if self.is_holding:
                await self._hold(name)
        text = "".join(chr(97 + token) for token in tokens)
        yield GenerationDone(text, tokens, "length", start + len(tokens))

    async def _hold(self, name: str) -> None:
        self.submitted.put_nowait(name)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(name)
            raise

    def _fail(self, name: str) -> None:
        if self.failures.get(name):
            raise self.failures[name].pop(0)


def length(source: Input | None) -> int:
    """The steps of an input."""
    if source is None:
        return 0
    steps = source.text if source.text is not None else source.tokens if source.tokens is not None else source.values
    return 0 if steps is None else len(steps)


def predict(source: Input, options: StepOptions, position: int) -> Prediction:
    """What `echo` says after an input that began at a position."""
    num_steps = length(source)
    last = [source.tokens[i] if source.tokens is not None else i for i in range(num_steps)]
    told = last if options.every_step else last[-1:]
    surprises = [float(position + i + 1) for i in range(num_steps)]
    return Prediction(
        length=num_steps,
        every_step=options.every_step,
        next=[[Candidate(chr(97 + k), token + k, 0.5**k) for k in range(options.top)] for token in told],
        surprise=Surprise(math.fsum(surprises) / num_steps, "bits", surprises if options.every_step else None),
    )
