"""Columnar messages over the core: whatever happens to sessions, together or one by one they are told the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import VOCABULARY, write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tests.clock import ManualClock
from tests.service.serving import change_bundle, started
from tidegate import limits
from tidegate.api import Input, RowSteps, SessionGroup, SessionRequest, StepOptions
from tidegate.bundle import DriftCalibration, Limit
from tidegate.config import load_settings
from tidegate.errors import TidegateError
from tidegate.observability.requests import RequestMetrics
from tidegate.reply import RowReply, RowsReply
from tidegate.service import Service
from tidegate.sessions.stores.memory import MemoryStore
from tidegate.transports.grpc.calls import Context
from tidegate.transports.grpc.stream import step_queue
from tidegate.v1 import predictor_pb2
from tidegate.wire.columns import ColumnsResult, decode_columns_reply
from tidegate.wire.inputs import fill_values

MODELS = ("tiny-lstm", "tiny-forecast", "tiny-stream")
"""One of each task; their sessions have charts of their own where they may."""


DRIFT = DriftCalibration(
    block=3,
    factor=0.3,
    mean=4.0,
    spread=0.5,
    warning=Limit(width=0.2, run_length=1),
    drift=Limit(width=1.0, run_length=1),
    autocorrelation=0.0,
    blocks=10,
    data="none",
)


class OneByOne(Service):
    """The core, every lane by itself."""

    def submit_columns(
        self,
        group: SessionGroup,
        rows: Sequence[int],
        steps: RowSteps,
        options: StepOptions,
        deadline: float | None,
        reply: RowsReply,
    ) -> None:
        for place, id_ in enumerate(group.ids):
            source, position = steps.of(place, steps.starts())
            try:
                self.submit_step(id_, source, options, position, deadline, RowReply(reply, rows[place]))
            except TidegateError as error:
                reply.put(rows[place], error)


class Counting(Service):
    """The core; counts the lanes that were submitted one by one."""

    num_alone = 0

    def submit_step(self, *args: Any) -> None:
        self.num_alone += isinstance(args[-1], RowReply)
        super().submit_step(*args)


class Line:
    """A client's stream in memory."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[predictor_pb2.StreamRequest] = asyncio.Queue()
        self._told: asyncio.Queue[predictor_pb2.StreamReply] = asyncio.Queue()

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    async def read(self) -> predictor_pb2.StreamRequest:
        return await self._asked.get()

    async def write(self, reply: predictor_pb2.StreamReply) -> None:
        self._told.put_nowait(predictor_pb2.StreamReply.FromString(reply.SerializeToString()))

    def send(self, **message: Any) -> None:
        self._asked.put_nowait(predictor_pb2.StreamRequest(**message))

    async def told(self) -> predictor_pb2.StreamReply:
        return await self._told.get()


@asynccontextmanager
async def streaming(service: Service) -> AsyncIterator[Line]:
    line = Line()
    running = asyncio.create_task(step_queue(service, cast("Context", line), RequestMetrics(service.clock)).run())
    try:
        yield line
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles a model; those that tell surprise are calibrated: short blocks, near limits."""
    root = tmp_path_factory.mktemp("bundles")
    change_bundle(write_tiny_bundle(root / "tiny-lstm", "tiny-lstm"), "2", drift=DRIFT)
    change_bundle(root / "tiny-lstm" / "tiny-lstm" / "1", "3", drift=DRIFT)
    change_bundle(write_tiny_forecast_bundle(root / "tiny-forecast"), "2", drift=DRIFT)
    write_tiny_stream_bundle(root / "tiny-stream")
    return root


class Step(NamedTuple):
    """Something that a client does. ``lanes`` of a message are drawn from those there are, in any order."""

    what: str
    lanes: tuple[int, ...]
    seed: int
    where: str = "none"
    top: int = 1
    every_step: bool = False
    is_pipelined: bool = False


NUM_LANES = 6
some_lanes = st.lists(st.integers(0, NUM_LANES - 1), min_size=1, max_size=NUM_LANES, unique=True).map(tuple)
messages = st.builds(
    Step,
    st.sampled_from(["columns", "columns", "long", "bad input"]),
    st.just(tuple(range(NUM_LANES))) | some_lanes,
    st.integers(0, 3),
    st.sampled_from(["none", "right", "right", "last", "wrong", "mixed"]),
    st.sampled_from([1, 1, 2]),
    st.sampled_from([False, False, True]),
)
pipelined = st.builds(
    Step,
    st.sampled_from(["columns", "columns", "long", "bad input"]),
    st.just(tuple(range(NUM_LANES))) | some_lanes,
    st.integers(0, 3),
    st.just("none"),
    st.just(1),
    st.booleans(),
    st.just(True),
)
deeds = st.builds(
    Step,
    st.sampled_from(["step", "close", "rewind", "checkpoint", "wait", "upgrade", "elsewhere", "elsewhere"]),
    some_lanes,
    st.integers(0, 3),
    st.sampled_from(["none", "right"]),
    st.just(1),
)
histories = st.lists(messages | pipelined | pipelined | deeds, min_size=3, max_size=25)


class Client:
    """Does the same to any service that is handed to it, and notes all that it is told.

    Args:
        service: The core.
        other: Another replica at the same store.
        line: A stream of the core.
        model: Of all sessions.
        clock: Of both.
        durable: Which lanes' sessions are.
    """

    def __init__(
        self, service: Service, other: Service, line: Line, model: str, clock: ManualClock, durable: Sequence[bool]
    ) -> None:
        self.service, self.other, self.line, self.model, self.clock = service, other, line, model, clock
        self.ids = [f"s{lane}" for lane in range(NUM_LANES)]
        self.durable = durable
        self.positions = [0] * NUM_LANES
        self.notes: list[object] = []
        self.num_due = 0

    async def begin(self) -> None:
        version = "1" if self.model == "tiny-stream" else "2"
        has_chart = self.service.model(self.model, version).drift is not None
        for id_, durable in zip(self.ids, self.durable, strict=True):
            await self.service.open_session(
                SessionRequest(self.model, version, id=id_, drift=has_chart, idle_seconds=50.0, durable=durable)
            )
        self.line.send(attach=predictor_pb2.Attach(sessions=self.ids))
        await self.line.told()

    async def do(self, step: Step) -> None:
        if step.what in {"columns", "bad input", "long"}:
            if not step.is_pipelined:
                await self.listen()
            await self._columns(step)
            if not step.is_pipelined:
                await self.listen()
            return
        await self.listen()
        if step.what == "wait":
            self.clock.now += 20.0
            return
        for lane in step.lanes[:2]:
            if step.what != "elsewhere" or self.durable[lane]:
                self.notes.append(await self._deed(step, self.ids[lane]))

    async def listen(self) -> None:
        """Wait for the replies that are due."""
        while self.num_due:
            self.num_due -= 1
            reply = await self.line.told()
            self.notes.append(decode_columns_reply(reply.columns) if reply.HasField("columns") else reply.error.reason)

    async def end(self) -> None:
        await self.listen()
        for id_ in self.ids:
            try:
                info = await self.service.get_session(id_)
                self.notes.append((info.version, info.position, await self.service.snapshot_session(id_) and None))
            except TidegateError as error:
                self.notes.append(type(error))
        self.notes += [counted(self.service, self.model)]

    async def _deed(self, step: Step, id_: str) -> object:  # noqa: PLR0911
        try:
            if step.what == "step":
                return (await self.service.step(id_, self._input(Random(step.seed), 1))).position
            if step.what == "elsewhere":
                return (await self.other.step(id_, self._input(Random(step.seed), 2))).position
            if step.what == "close":
                await self.service.close_session(id_)
                return "closed"
            if step.what == "checkpoint":
                return (await self.service.checkpoint_session(id_, "here")).position
            if step.what == "upgrade":
                return (await self.service.upgrade_session(id_, None)).version
            return (await self.service.rewind_session(id_, "here")).position
        except TidegateError as error:
            return type(error), error.reason, error.message

    async def _columns(self, step: Step) -> None:
        rng = Random(step.seed)
        lengths = [rng.choice([1, 2]) for _ in step.lanes] if step.what == "long" else [1] * len(step.lanes)
        source = self._input(rng, sum(lengths), is_bad=step.what == "bad input")
        message = predictor_pb2.Columns(
            lanes=step.lanes, top=step.top, every_step=step.every_step, positions=await self._places(step, rng)
        )
        if step.what == "long":
            message.lengths.extend(lengths)
        if source.values is not None:
            fill_values(message.values, np.asarray(source.values))
        else:
            message.tokens.extend(source.tokens or ())
        self.line.send(columns=message)
        self.num_due += 1

    async def _places(self, step: Step, rng: Random) -> list[int]:
        if step.where == "none":
            return []
        found = []
        for lane in step.lanes:
            with suppress(TidegateError):
                self.positions[lane] = (await self.service.get_session(self.ids[lane])).position
            off = {"right": 0, "last": -1, "wrong": 7, "mixed": rng.choice([0, -1])}[step.where]
            found.append(max(0, self.positions[lane] + off))
        return found

    def _input(self, rng: Random, steps: int, *, is_bad: bool = False) -> Input:
        if self.model == "tiny-lstm":
            tokens = [rng.randrange(len(VOCABULARY)) for _ in range(steps)]
            return Input(tokens=[*tokens[:-1], 9999 if is_bad else tokens[-1]])
        rows = np.array([[rng.gauss(100, 20), float(rng.randrange(24))] for _ in range(steps)], np.float32)
        if is_bad:
            rows[-1, 0] = np.nan
        return Input(values=rows)


def counted(service: Service, model: str) -> object:
    """What the metrics say that does not depend on how work was packed, nor on time."""
    found = [each for each in service.statistics().models if each.model == model]
    return [
        (
            each.version,
            each.num_rows,
            each.num_steps,
            each.stats.steps,
            each.stats.num_repeats,
            each.stats.num_conflicts,
            each.stats.queue.num_values,
            each.quality.num_steps,
            round(each.quality.surprise, 3),
            each.quality.num_nan,
            each.quality.num_outliers,
            each.quality.blocks.counts,
            each.quality.changes,
            each.quality.num_unknown,
            each.quality.num_missing,
            each.quality.num_out_of_range,
            each.quality.num_inside,
            each.quality.num_outside,
        )
        for each in found
    ]


def check_same(one: object, other: object) -> None:
    if not isinstance(one, ColumnsResult):
        assert one == other
        return
    assert isinstance(other, ColumnsResult)
    assert (one.lanes, one.positions, one.counts, one.quantiles) == (
        other.lanes, other.positions, other.counts, other.quantiles
    )  # fmt: skip
    told = [(lane, type(error), error.reason, error.message, error.details) for lane, error in one.errors.items()]
    assert told == [
        (lane, type(error), error.reason, error.message, error.details) for lane, error in other.errors.items()
    ]
    for mine, theirs in (
        (one.ids, other.ids),
        (one.probabilities, other.probabilities),
        (one.forecast, other.forecast),
        (one.surprise, other.surprise),
        *((one.outputs[name], other.outputs[name]) for name in one.outputs),
    ):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert mine.shape == theirs.shape
            assert np.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert {lane: drift[::2] for lane, drift in one.drift.items()} == {
        lane: drift[::2] for lane, drift in other.drift.items()
    }


EPHEMERAL = (False,) * NUM_LANES


async def notes_of(
    kind: type[Service],
    folder: Path,
    model: str,
    history: Sequence[Step],
    durable: Sequence[bool] = EPHEMERAL,
    max_rows: int = 256,
) -> tuple[Service, list[object]]:
    clock = ManualClock()
    store, settings = MemoryStore(clock.clock()), load_settings({"bundles": folder / model, "max_rows": max_rows})
    service, other = (each(settings, clock.clock(), store) for each in (kind, Service))
    async with started(service), started(other), streaming(service) as line:
        client = Client(service, other, line, model, clock, durable)
        await client.begin()
        for step in history:
            await client.do(step)
        await client.end()
        return service, client.notes


@settings(max_examples=100, deadline=None)
@given(
    history=histories,
    model=st.sampled_from(MODELS),
    max_rows=st.sampled_from([256, 256, 4]),
    durable=st.just(EPHEMERAL) | st.tuples(*[st.booleans()] * NUM_LANES),
)
def test_any_history_is_told_the_same_together_and_one_by_one(
    root: Path, history: list[Step], model: str, max_rows: int, durable: tuple[bool, ...]
) -> None:
    async def check() -> None:
        _, together = await notes_of(Service, root, model, history, durable, max_rows)
        _, alone = await notes_of(OneByOne, root, model, history, durable, max_rows)
        for one, other in zip(together, alone, strict=True):
            check_same(one, other)

    asyncio.run(check())


async def test_what_is_alike_goes_together(root: Path) -> None:
    every = Step("columns", tuple(range(NUM_LANES)), 1)
    history = [
        every,
        every._replace(where="right"),
        every._replace(where="last"),  # a repeat
        every._replace(lanes=(3, 1), is_pipelined=True),
        every._replace(lanes=(3,), is_pipelined=True),
        every._replace(what="long"),
        every,
    ]
    for durable in (EPHEMERAL, (True, False) * (NUM_LANES // 2), (True,) * NUM_LANES):
        service, notes = await notes_of(Counting, root, "tiny-lstm", history, durable)
        assert isinstance(service, Counting)
        assert service.num_alone == 0
        last = notes[6]
        assert isinstance(last, ColumnsResult)
        assert not last.errors


async def test_a_bad_input_fails_its_lane_and_no_other(root: Path) -> None:
    every = Step("columns", tuple(range(NUM_LANES)), 1)
    history = [every, every._replace(what="bad input"), every]
    service, notes = await notes_of(Counting, root, "tiny-lstm", history)
    assert isinstance(service, Counting)
    assert service.num_alone == NUM_LANES
    bad = notes[1]
    assert isinstance(bad, ColumnsResult)
    assert bad.positions == [2] * (NUM_LANES - 1)
    assert bad.errors[NUM_LANES - 1].reason == "TOKEN_OUT_OF_RANGE"


async def test_a_message_larger_than_a_run_goes_in_parts(root: Path) -> None:
    history = [Step("columns", tuple(range(NUM_LANES)), 1)] * 2
    service, notes = await notes_of(Counting, root, "tiny-stream", history, max_rows=4)
    assert isinstance(service, Counting)
    assert service.num_alone == 0
    last = notes[1]
    assert isinstance(last, ColumnsResult)
    assert last.positions == [2] * NUM_LANES
    assert all(len(array) == NUM_LANES for array in last.outputs.values())


async def test_an_idle_session_expires_and_a_stepped_one_does_not(root: Path) -> None:
    every, wait = Step("columns", tuple(range(NUM_LANES)), 1), Step("wait", (), 0)
    some = every._replace(lanes=(0, 1))
    _, notes = await notes_of(Service, root, "tiny-lstm", [every, wait, some, wait, some, wait, some, every])
    last = notes[-NUM_LANES - 2]
    assert isinstance(last, ColumnsResult)
    assert last.positions == [5, 5]
    assert {error.reason for error in last.errors.values()} == {"SESSION_IDLE"}


async def test_a_lane_of_too_many_steps_is_refused_and_no_other(root: Path) -> None:
    async with started(Service(load_settings({"bundles": root / "tiny-lstm", "store": "none"}))) as service:
        ids = [(await service.open_session(SessionRequest("tiny-lstm"))).id for _ in range(2)]
        too_many = [1] * (limits.MAX_STEPS + 1)
        steps = RowSteps(Input(tokens=[2, *too_many]), [1, len(too_many)], [])
        reply, done = RowsReply(2), asyncio.Event()
        reply.add_done_callback(lambda _: done.set())
        service.submit_columns(SessionGroup(ids), range(2), steps, StepOptions(), None, reply)
        await done.wait()
        stepped, refused = reply.results()
        assert stepped.position == 1
        assert refused.reason == "REQUEST_TOO_LARGE"
