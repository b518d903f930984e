"""The loop: the one bridge between asyncio and the engine.

A tick drains what has arrived, schedules, gathers, runs onnxruntime once, commits, replies. It runs in a task
of its own and belongs to no request: a caller that goes away costs nobody else anything. Everything but the run
happens on the event loop, so nothing is locked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Protocol

from tidegate.api import Tensor
from tidegate.engine.engine import Engine
from tidegate.engine.request import TIMINGS, Outcome, Request, Step, begin_timings
from tidegate.engine.scheduler import Plan
from tidegate.engine.session import DurableSession
from tidegate.errors import InvalidInputError, TidegateError, UnavailableError
from tidegate.faults import conceal
from tidegate.limits import QUEUE_SHARE
from tidegate.watchdog import NO_LIMIT, RUN_TIMEOUT, RunLimit

log = logging.getLogger(__name__)

_LINGER_SECONDS = 0.005
_LINGER_ROUNDS = 1000
_GAP_SECONDS = 0.0003


class RunnerLike(Protocol):
    """What the loop needs of a runner."""

    def run(self, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]: ...


class Committer(Protocol):
    """Between an engine and the store of durable sessions."""

    async def commit(self, steps: Sequence[Step]) -> list[Outcome]:
        """Store what ended in a run, before anybody is told; return what became of each."""

    async def refresh(self, session: DurableSession) -> None:
        """Read the session's record into the engine's copy, and `Engine.resume` it; raises nothing."""


class Loop:
    """Ticks.

    Args:
        engine: Whose work is run.
        runner: Runs the graph.
        clock: Monotonic seconds.
        committer: Stores durable sessions; None where all are ephemeral, whose only truth is the arena. A commit takes
            its time beside the loop: the runs of everybody else go on.
        executor: Where to run onnxruntime; None runs it inline in the event loop.
        limit: The time that the runner's runs may take.
    """

    def __init__(
        self,
        engine: Engine,
        runner: RunnerLike,
        clock: Callable[[], float],
        *,
        committer: Committer | None = None,
        executor: Executor | None = None,
        limit: RunLimit = NO_LIMIT,
    ) -> None:
        self._engine = engine
        self._runner = runner
        self._committer = committer
        self._executor = executor
        self._limit = limit
        self._clock = clock
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()
        self._is_stopped = False
        self._is_traced = False  # whether any work ever was
        self.run_seconds = 0.0

    def start(self) -> None:
        """Start ticking."""
        self._task = asyncio.create_task(self._tick_forever(), name="tidegate-engine")

    async def stop(self) -> None:
        """Stop ticking; work that still waits, or comes later, is answered with UNAVAILABLE."""
        self._is_stopped = True
        tasks = [*self._beside, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._engine.abort(_stopping())
        self._idle.set()

    def submit(self, request: Request) -> None:
        """Let a request wait its turn.

        Raises:
            OverloadedError: Too much waits already.
            UnavailableError: The loop was stopped.
        """
        if self._is_stopped:
            raise _stopping()
        request.arrived = now = self._clock()
        if TIMINGS.get() is not None:
            request.timings = begin_timings(now)
            self._is_traced = True
        self._engine.submit(request)
        self._idle.clear()
        self._go_on()

    async def wait_idle(self) -> None:
        """Return when nothing waits for an answer."""
        while self._engine.num_waiting:
            await self._idle.wait()

    async def _tick_forever(self) -> None:
        while True:
            await self._drain()
            now = self._clock()
            plan = self._engine.schedule(now)
            if plan is not None and plan.requests:
                await self._tick(plan)
                self._engine.stats.ticks.add(self._clock() - now)

    async def _tick(self, plan: Plan) -> None:
        """Run a plan and answer its rows. Where the run fails, each row is tried alone: one bad row fails no other."""
        engine = self._engine
        try:
            inputs, states = engine.gather(plan)
            outputs, news = await self._run(plan, inputs, states)
        except Exception as error:  # noqa: BLE001 - told to the rows it concerns
            await self._fail(plan, error)
            return
        try:
            now = self._clock()
            batch = engine.read(plan, inputs, outputs, news, now)
            if steps := engine.commit(batch, now):
                self._spawn(self._store(steps))
            engine.reply(batch, now)
            self._read_records()
        except Exception as error:  # noqa: BLE001 - told to the rows it concerns
            engine.fail(plan, conceal(error, f"the results of {plan.num_rows} rows could not be read"))

    async def _store(self, steps: Sequence[Step]) -> None:
        """Commit steps, then answer them."""
        assert self._committer is not None
        outcomes: Sequence[Outcome]
        began = self._clock()
        try:
            outcomes = await self._committer.commit(steps)
        except Exception as error:  # noqa: BLE001 - told to the steps it concerns
            outcomes = [conceal(error, f"{len(steps)} steps could not be committed")] * len(steps)
        now = self._clock()
        if self._is_traced:
            for timings in {step.request.timings for step in steps}:
                if timings is not None:
                    timings.add_commit(began, now)
        self._engine.on_steps_stored(steps, outcomes, now)
        self._go_on()

    def _read_records(self) -> None:
        for session in self._engine.take_unread():
            self._spawn(self._refresh(session))

    async def _refresh(self, session: DurableSession) -> None:
        assert self._committer is not None
        await self._committer.refresh(session)
        self._go_on()

    def _go_on(self) -> None:
        self._read_records()
        self._wake.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _fail(self, plan: Plan, error: Exception) -> None:
        """Answer a failed run's rows: a row of a run of several gets another try, alone.

        Where it took too long, one row may be the cause or all of them. The tries then share the time of one more run.
        """
        if isinstance(error, TidegateError) and not isinstance(error, InvalidInputError):
            log.error("a run of %d rows failed: %s", plan.num_rows, error)
        told = conceal(error, f"a run of {plan.num_rows} rows failed")
        if plan.num_rows == 1:
            self._engine.fail(plan, told)
            return
        is_late = isinstance(error, TidegateError) and error.reason == RUN_TIMEOUT
        requests = self._engine.split(plan)
        end = self._clock() + self._limit.whole
        for index, request in enumerate(requests):
            alone = self._engine.retry(request, plan.length)
            if alone is None:
                continue
            if not is_late:
                await self._tick(alone)
            elif (left := end - self._clock()) > 0:
                self._limit.seconds = left / (len(requests) - index)
                try:
                    await self._tick(alone)
                finally:
                    self._limit.seconds = self._limit.whole
            else:
                self._engine.fail(alone, told)

    async def _drain(self) -> None:
        """Wait for work; then, while callers that were just answered are on their way back, let them come in too.

        Each that makes it into this run saves a run of its own. The wait ends when all are here, when none came for a
        moment, or when it has lasted long enough.
        """
        engine = self._engine
        while not engine.num_runnable:
            self._wake.clear()
            if not engine.num_waiting:
                self._idle.set()
            await self._wake.wait()
        await asyncio.sleep(0)
        now = self._clock()
        window = engine.window
        if window.num_expected(now) and not engine.has_full_run and window.is_worthwhile():
            num_runnable = engine.num_runnable
            await self._linger(now)
            window.learn(came=engine.num_runnable > num_runnable)

    async def _linger(self, now: float) -> None:
        engine = self._engine
        arrived, end = now, now + _LINGER_SECONDS
        num_runnable = engine.num_runnable
        for _ in range(_LINGER_ROUNDS):
            if not engine.window.num_expected(now) or now >= end or now - arrived >= _GAP_SECONDS:
                break
            await asyncio.sleep(0)
            now = self._clock()
            if engine.num_runnable != num_runnable:
                num_runnable, arrived = engine.num_runnable, now
                if engine.has_full_run:
                    break

    async def _run(
        self, plan: Plan, inputs: Sequence[Tensor], states: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        began = self._clock()
        if self._executor is None:
            result = self._runner.run(inputs, states)
        else:
            result = await asyncio.get_running_loop().run_in_executor(self._executor, self._runner.run, inputs, states)
        ended = self._clock()
        self.run_seconds += ended - began
        if self._is_traced:
            num_rows = plan.num_rows
            for request in plan.requests:
                if request.timings is not None:
                    request.timings.add_run(began, ended, num_rows, plan.length)
        return result


class QueueShare:
    """One caller's share of a model's queue: what more it has to submit waits with it, and not in everybody's way.

    Attributes:
        has_failed: Whether anything of it ended with an error, or was cancelled.
    """

    def __init__(self, max_queue: int) -> None:
        self._size = max(1, max_queue // QUEUE_SHARE)
        self._num_held = 0
        self._waiter: asyncio.Future[None] | None = None
        self.has_failed = False

    async def wait_for_room(self, num_rows: int = 1) -> None:
        """Return when ``num_rows`` more may be submitted; what is larger than the whole share goes alone."""
        while self._num_held and self._num_held + num_rows > self._size:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def take(self, num_rows: int = 1) -> None:
        """Rows are submitted."""
        self._num_held += num_rows

    def give_back(self, num_rows: int = 1, *, has_failed: bool = False) -> None:
        """Rows are answered."""
        self._num_held -= num_rows
        self.has_failed = self.has_failed or has_failed
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _stopping() -> UnavailableError:
    return UnavailableError("the server is stopping", reason="DRAINING", retry_after=1.0)
