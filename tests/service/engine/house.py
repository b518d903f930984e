"""An engine and its loop over a fake runner whose numbers are exact: equal results are equal bit for bit.

The fake model's state is one whole number. Its runs can be watched, made to fail, and used to do something in mid-run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from tests.clock import START
from tidegate.api import (
    GeneratedToken,
    GenerationDone,
    Input,
    Prediction,
    Sampling,
    SessionRequest,
    StepOptions,
    StepResult,
    Tensor,
)
from tidegate.bundle import StateSpec, TokenCodec
from tidegate.codecs.tokens import Tokens
from tidegate.engine.arena import Arena, ArenaLike, Budget, Plane
from tidegate.engine.device.arena import DeviceArena, DeviceMemory
from tidegate.engine.engine import Engine
from tidegate.engine.lifecycle import Event
from tidegate.engine.loop import Committer, Loop
from tidegate.engine.quality import Quality
from tidegate.engine.request import Generation, Request, chunk
from tidegate.engine.scheduler import Scheduler
from tidegate.engine.session import DurableSession, Session
from tidegate.reply import RowResult, RowsReply
from tidegate.watchdog import NO_LIMIT, RunLimit

VOCABULARY = "abcdefgh"
POISON = "h"
_MODULUS = 1_000_003
Outputs = dict[str, Tensor]


@dataclass
class Defaults:
    """Where the states of a house's sessions lie: ``host`` or ``device``."""

    arena: str = "host"


DEFAULTS = Defaults()


@dataclass
class FakeRunner:
    """state' = (state · 31 + token + 1) mod 1000003; the logits are a fixed jumble of the state.

    A run fails, with ``failure``, where a row holds ``POISON``. ``during[n]`` is done amid the n-th run, from 0.
    """

    runs: list[tuple[int, int]] = field(default_factory=list)
    during: dict[int, Callable[[], object]] = field(default_factory=dict)
    failure: Exception = field(default_factory=lambda: ArithmeticError("poison"))

    def run(self, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Outputs, list[Tensor]]:
        tokens = np.asarray(inputs[0], dtype=np.int64)
        self.runs.append(tokens.shape)
        self.during.pop(len(self.runs) - 1, lambda: None)()
        if (tokens == VOCABULARY.index(POISON)).any():
            raise self.failure
        state = np.asarray(states[0], dtype=np.int64)[0]
        trace = np.empty(tokens.shape, np.int64)
        for step in range(tokens.shape[1]):
            state = trace[:, step] = (state * 31 + tokens[:, step] + 1) % _MODULUS
        return {"logits": _logits(trace), "surprise": (trace % 97).astype(np.float32)}, [state[None]]


@dataclass
class FakeDeviceRunner(FakeRunner):
    """The same model beside states that stay in ``memory``: it is told rows, and says rows."""

    memory: DeviceMemory | None = None

    def run(self, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Outputs, list[Tensor]]:
        assert self.memory is not None
        sources, targets = states
        assert not set(sources.tolist()) & set(targets.tolist())
        rows = self.memory.arrays[0].numpy()  # on the CPU not a copy
        outputs, (news,) = super().run(inputs, [rows[sources].T])
        rows[targets] = news.T
        return outputs, [targets]


def _logits(trace: Tensor) -> Tensor:
    jumble = np.asarray(trace, dtype=np.int64)[..., None] * (7919 * (np.arange(len(VOCABULARY)) + 1)) % 1009
    logits = (jumble / 250.0).astype(np.float32)
    logits[..., VOCABULARY.index(POISON)] = -np.inf  # never sampled
    return logits


def whole(text: str) -> Outputs:
    """Return what the fake model says to all of ``text`` at once: outputs [steps, …]."""
    tokens = np.array([[VOCABULARY.index(character) for character in text]])
    outputs, _ = FakeRunner().run([tokens], [np.zeros((1, 1), np.int64)])
    return {name: output[0] for name, output in outputs.items()}


@dataclass
class Stream:
    """A running generation: what was sent so far, and the reply."""

    events: list[GeneratedToken | GenerationDone]
    reply: asyncio.Future[GenerationDone]

    @property
    def tokens(self) -> list[int]:
        return [event.id for event in self.events if isinstance(event, GeneratedToken)]


class Message:
    """Steps of many sessions under way."""

    def __init__(self, rows: RowsReply) -> None:
        self.rows = rows

    def cancel(self) -> None:
        self.rows.cancel()

    async def results(self) -> list[RowResult]:
        """Wait for the last row; return each row's result."""
        if not self.rows.done():
            done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            self.rows.add_done_callback(done.set_result)
            await done
        return self.rows.results()


@dataclass
class House:
    """Everything between a submitted chunk and its reply."""

    runner: FakeRunner
    arena: ArenaLike
    budget: Budget
    engine: Engine
    loop: Loop
    codec: Tokens
    now: float = START
    sessions: list[Session] = field(default_factory=list)

    def look(self) -> float:
        """Return the time. Each look takes a tenth of a millisecond: who waits for a moment to pass sees it pass."""
        self.now += 1e-4
        return self.now

    def open(self, seed: int = 7, *, durable: bool = False, drift: bool = False) -> Session:
        name = f"s{len(self.sessions)}"
        kind = DurableSession if durable else Session
        session = kind(name, None, SessionRequest("fake", drift=drift), seed, created_at=0.0, used_at=0.0)
        assert self.engine.can_hold()
        self.engine.allocate_slot(session)
        self.sessions.append(session)
        return session

    def end(self, session: Session) -> None:
        session.end(Event.CLOSE)
        self.engine.release(session)

    def step(
        self,
        session: Session,
        text: str,
        position: int | None = None,
        options: StepOptions = StepOptions(),  # noqa: B008
        deadline: float | None = None,
    ) -> asyncio.Future[StepResult]:
        future: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        self.loop.submit(chunk(session, self.codec.encode(Input(text=text)), options, position, deadline, future))
        return future

    def step_rows(
        self,
        sessions: Sequence[Session],
        text: str,
        positions: Sequence[int] = (),
        deadline: float | None = None,
        options: StepOptions = StepOptions(),  # noqa: B008
        length: int = 1,
        caller: object = None,
    ) -> Message:
        """Step each session by its ``length`` characters of ``text``, as one request."""
        inputs = tuple(array.reshape(len(sessions), length) for array in self.codec.encode(Input(text=text)))
        message = Message(RowsReply(len(sessions)))
        self.loop.submit(
            Request(
                sessions, inputs, options, list(positions), deadline, message.rows, lanes=range(len(sessions)),
                caller=caller,
            )
        )  # fmt: skip
        return message

    def predict(self, text: str, options: StepOptions = StepOptions()) -> asyncio.Future[Prediction]:  # noqa: B008
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.loop.submit(chunk(None, self.codec.encode(Input(text=text)), options, None, None, future))
        return future

    def generate(
        self,
        session: Session | None,
        prompt: str | None,
        sampling: Sampling,
        position: int | None = None,
        deadline: float | None = None,
    ) -> Stream:
        stream = Stream([], asyncio.get_running_loop().create_future())
        seed = sampling.seed if sampling.seed is not None else session.seed if session else 0
        work = Generation(
            session,
            () if prompt is None else self.codec.encode(Input(text=prompt)),
            sampling,
            seed,
            position,
            deadline,
            stream.reply,
            vocabulary=self.codec.tokens,
            emit=stream.events.append,
        )
        self.loop.submit(work)
        return stream

    def state(self, session: Session) -> tuple[int, int, float]:
        """Return position, state and the kept output's first logit."""
        assert session.slot is not None
        return session.position, int(self.arena.read(session.slot, 0)[0]), float(self.arena.read(session.slot, 1)[0])

    def check_integrity(self) -> None:
        """Nothing leaks: no work is left, and the arena holds the live sessions' slots and nothing else."""
        live = [session.slot for session in self.sessions if session.slot is not None]
        assert self.engine.num_waiting == 0
        assert len(set(live)) == len(live) == self.arena.num_used
        assert self.budget.used == len(live) * self.arena.slot_bytes
        assert not any(session.queue for session in self.sessions)


@asynccontextmanager
async def house(  # noqa: PLR0913 - what a test may want otherwise
    *,
    max_rows: int = 64,
    max_steps: int = 4096,
    max_piece: int = 8,
    max_queue: int = 10_000,
    slots: int = 64,
    committer: Committer | None = None,
    quality: Quality | None = None,
    kind: type[Tokens] = Tokens,
    limit: RunLimit = NO_LIMIT,
) -> AsyncIterator[House]:
    """A house at work. When it is left, everything is answered and nothing leaked."""
    codec = kind(VOCABULARY, None, TokenCodec())
    planes = [
        Plane(np.dtype(np.int64), (1,), slot_axis=1),
        Plane(np.dtype(np.float32), (len(VOCABULARY),), slot_axis=0),
    ]
    budget = Budget(slots * sum(plane.row_bytes for plane in planes))
    arena: ArenaLike = Arena(planes, budget)
    runner = FakeRunner()
    if DEFAULTS.arena == "device":
        state = StateSpec(input="in", output="out", dtype="int64", axes=(1, "batch"))
        memory = DeviceMemory([state], "cpu", capacity=4)
        arena, runner = DeviceArena(memory, planes[1], budget), FakeDeviceRunner(memory=memory)
    engine = Engine(codec, arena, 1, Scheduler(max_rows, max_steps, max_piece), max_queue, quality=quality)
    loop = Loop(
        engine,
        runner,
        lambda: it.look(),  # noqa: PLW0108 - the house comes after the loop
        committer=committer,
        limit=limit,
    )
    it = House(runner, arena, budget, engine, loop, codec)
    loop.start()
    try:
        yield it
        await loop.wait_idle()
        it.check_integrity()
    finally:
        await loop.stop()
