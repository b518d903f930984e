"""Sequences: a client names one by a number or a string, begins it, steps it and ends it.

A sequence of one row is a session of the same engine as everybody's, so it shares batches with them; one of n rows is
n sessions that step together. Requests of a sequence are applied in the order in which they arrive. What only steps
goes to the engine at once. What begins or ends a sequence has to wait (a session is opened or closed, perhaps in a
store); then requests of the same sequence that arrive meanwhile wait behind it, and those of others do not.

Knows begin, end, restart and rows. Knows nothing of tensors' names, of transports and of how a session is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple

from tidegate.api import KnownSession, SequenceCore, StepResult, Tensor
from tidegate.errors import InvalidInputError, NotFoundError, PositionConflictError, SessionEndedError, TidegateError
from tidegate.sessions.ids import SEQUENCE

_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST = 100  # of a session id's 128 characters; the rest is for the row


class Key(NamedTuple):
    """What names a sequence: 5 and "5" are two."""

    model: str
    id: int | str

    def __str__(self) -> str:
        return f"sequence {self.id!r} of model {self.model}"


def session_ids(key: Key) -> Iterator[str]:
    """The ids of a sequence's sessions, row by row: ``q~i~MODEL~5`` of a number, ``q~s~MODEL~NAME`` of a string.

    What an id of ours cannot hold is written ``~`` and two hexadecimal digits a byte; what is too long, by its SHA-256.
    Further rows have ``~r1``, ``~r2`` and so on behind it.
    """
    kind = f"{SEQUENCE}s" if isinstance(key.id, str) else f"{SEQUENCE}i"
    first = f"{kind}~{key.model}~{_FORBIDDEN.sub(_quoted, str(key.id))}"
    if len(first) > _LONGEST:
        digest = hashlib.sha256(f"{key.model}/{key.id}".encode("utf-8", "surrogatepass")).hexdigest()
        first = f"{kind}~~{digest}"
    yield first
    for row in count(1):
        yield f"{first}~r{row}"


def _quoted(match: re.Match[str]) -> str:
    return "".join(f"~{byte:02x}" for byte in match[0].encode("utf-8", "surrogatepass"))


Result = asyncio.Future[StepResult]


class SequenceStep(NamedTuple):
    """One request of a sequence.

    ``version`` is empty where the request left it open. ``rows`` are the graph's inputs of each row, [steps, …].
    ``refit`` makes them anew for the version that the sequence turns out to run on; their number stays.
    """

    key: Key
    version: str
    rows: Sequence[tuple[Tensor, ...]]
    start: bool = False
    end: bool = False
    position: int | None = None
    deadline: float | None = None
    refit: Callable[[str], Sequence[tuple[Tensor, ...]]] | None = None

    def on(self, version: str) -> SequenceStep:
        """The request as this version takes it; InvalidInputError where it does not."""
        return self if self.refit is None else self._replace(rows=self.refit(version))


@dataclass(slots=True, eq=False)
class Run:
    """A running sequence: its sessions, one a row, and the results that are due, in the order of the requests."""

    version: str
    sessions: list[str]
    due: deque[Result] = field(default_factory=deque)

    def expect(self, results: list[Result]) -> None:
        """Remember what is due; what was abandoned says nothing of what came before it."""
        while self.due and self.due[0].done():
            self.due.popleft()
        self.due.extend(results)


@dataclass(slots=True, eq=False)
class SequenceState:
    """What is known of a key.

    ``run`` is its running sequence. ``over`` are those that ended by themselves, in a row of theirs at least: the
    worker will close what is left. ``waiting`` are requests that the worker will admit.
    """

    run: Run | None = None
    over: list[Run] = field(default_factory=list)
    waiting: deque[tuple[SequenceStep, list[Result]]] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None


def check_fit(step: SequenceStep, run: Run) -> None:
    if len(step.rows) != len(run.sessions):
        raise InvalidInputError(
            f"{step.key} was started with a batch of {len(run.sessions)} rows, this one has {len(step.rows)}",
            reason="WRONG_BATCH",
        )
    if step.version and step.version != run.version:
        raise InvalidInputError(f"{step.key} runs on version {run.version}, not {step.version}", reason="WRONG_VERSION")


def not_started(key: Key) -> InvalidInputError:
    return InvalidInputError(
        f"{key} is not running: its first request must specify the START flag", reason="SEQUENCE_NOT_STARTED"
    )


def explain_end(key: Key, error: TidegateError) -> TidegateError:
    """What a request is told whose sequence has ended by itself."""
    if not isinstance(error, SessionEndedError):
        return not_started(key)
    if error.message.startswith(f"{key} has ended: "):
        return error
    why = error.message.partition(": ")[2]
    return SessionEndedError(
        f"{key} has ended: {why}; to begin it anew a request must specify the START flag", reason=error.reason
    )


def error_of(result: Result) -> BaseException | None:
    """Why a finished result is none, or None."""
    return asyncio.CancelledError() if result.cancelled() else result.exception()


def link(inner: list[Result], outer: list[Result]) -> None:
    """Let each outer result end as the inner one does, and the inner one be cancelled with it."""
    for source, target in zip(inner, outer, strict=True):
        source.add_done_callback(partial(_pass_on, target))
        target.add_done_callback(partial(_abandon, source))


def _pass_on(target: Result, source: Result) -> None:
    error = error_of(source)
    if target.done():
        return
    if error is None:
        target.set_result(source.result())
    elif isinstance(error, asyncio.CancelledError):
        target.cancel()
    else:
        target.set_exception(error)


def _abandon(source: Result, target: Result) -> None:
    if target.cancelled():
        source.cancel()


def fail(results: list[Result], error: Exception) -> None:
    for result in results:
        if not result.done():
            result.set_exception(error)


def cancel(results: list[Result]) -> None:
    for result in results:
        result.cancel()


async def wait(results: list[Result]) -> None:
    if results:
        await asyncio.wait(results)


log = logging.getLogger(__name__)

_SWEEP_SLACK = 1024
_NO_REPEAT = PositionConflictError | SessionEndedError | NotFoundError


class Sequences:
    """All sequences of one process."""

    def __init__(self, core: SequenceCore) -> None:
        self._core = core
        self._states: dict[Key, SequenceState] = {}
        self._sweep_at = _SWEEP_SLACK

    def __len__(self) -> int:
        """Sequences that are known: running, or about to begin or to end."""
        return len(self._states)

    def version(self, key: Key) -> str | None:
        """The version that the sequence runs on, None where it is not running."""
        state = self._states.get(key)
        return None if state is None or state.run is None else state.run.version

    def submit(self, step: SequenceStep) -> list[Result]:
        """Let a request wait behind the sequence's other requests, and return the results of its rows.

        Cancelling them abandons the request. Errors arrive by the results, or are raised at once:

        Raises:
            InvalidInputError: The sequence is not running and the request does not start it, or the rows differ.
            SessionEndedError: The sequence has ended by itself; the reason says why.
        """
        state = self._states.get(step.key)
        if state is None:
            state = self._add(step.key)
        run = state.run
        if run is not None and state.worker is None and not step.start and not step.end and len(run.sessions) == 1:
            try:
                return self._step(step, state, run)
            except (SessionEndedError, NotFoundError) as error:
                raise explain_end(step.key, error) from error
        create = asyncio.get_running_loop().create_future
        results: list[Result] = [create() for _ in step.rows]
        state.waiting.append((step, results))
        self._wake(step.key, state)
        return results

    def explain(self, key: Key, error: TidegateError) -> TidegateError:
        """What a request is told that met ``error``; a sequence that has ended by itself is forgotten.

        The error may be an old one, of a sequence in whose place another has begun: that one goes on.
        """
        if not isinstance(error, SessionEndedError | NotFoundError):
            return error
        state = self._states.get(key)
        if state is not None and state.run is not None and not self._is_whole(state.run):
            self._drop(key, state, state.run)
        return explain_end(key, error)

    async def stop(self) -> None:
        """Drop what waits to be admitted; the sessions are the core's to keep."""
        workers = []
        for state in self._states.values():
            if state.worker is not None:
                state.worker.cancel()
                workers.append(state.worker)
        await asyncio.gather(*workers, return_exceptions=True)

    # ---- admission: one request of a key after the other

    def _wake(self, key: Key, state: SequenceState) -> None:
        if state.worker is None:
            state.worker = asyncio.create_task(self._work(key, state), name="tidegate-sequence")

    async def _work(self, key: Key, state: SequenceState) -> None:
        try:
            await self._close_over(state)
            while state.waiting:
                step, results = state.waiting.popleft()
                try:
                    await self._admit(step, state, results)
                except (SessionEndedError, NotFoundError) as error:
                    fail(results, explain_end(step.key, error))
                except Exception as error:  # noqa: BLE001 - it is this request's answer
                    fail(results, error)
                except BaseException:
                    cancel(results)
                    raise
                await self._close_over(state)
        finally:
            state.worker = None
            for _, results in state.waiting:
                cancel(results)
            self._forget_empty(key, state)

    async def _admit(self, step: SequenceStep, state: SequenceState, results: list[Result]) -> None:
        if all(result.done() for result in results):
            return
        if step.start and step.position not in {None, 0}:
            raise InvalidInputError(f"a sequence starts at position 0, not {step.position}", reason="BAD_POSITION")
        if state.run is None and await self._look_up(step, state, results):
            return
        if step.start:
            if step.position is not None and await self._answer_start_again(step, state, results):
                return
            await self._begin(step, state)
        if state.run is None:
            raise not_started(step.key)
        run = state.run
        step = step.on(run.version)
        inner = self._step(step, state, run)
        link(inner, results)
        if step.start or step.end or len(inner) > 1:
            await asyncio.wait(inner)
            await self._conclude(step, state, run, inner)

    async def _conclude(self, step: SequenceStep, state: SequenceState, run: Run, inner: list[Result]) -> None:
        """Let the sequence end where its request said so, or where it cannot go on rightly.

        That is where its start failed, for what was sent after it must not run as if nothing had happened; and where
        some rows took a step and others did not, unless a repeat with the position can still bring them together.
        """
        applied = [error_of(one) is None for one in inner]
        if step.end and all(applied):
            state.run = None  # its sessions ended with this step
        elif not all(applied) and (step.start or (any(applied) and step.position is None)):
            state.run = None
            await self._close(run)

    async def _look_up(self, step: SequenceStep, state: SequenceState, results: list[Result]) -> bool:
        """Find a sequence that is not known here: begun on another server, or before this one began, or ended.

        Return whether that answers the request: it repeats the one that the sequence ended with.
        """
        known: dict[str, KnownSession] = {}
        for name in session_ids(step.key):
            found = await self._core.find_sequence(step.key.model, name)
            if found is None:
                break
            known[name] = found
        if not known:
            return False
        version = next(iter(known.values())).version
        if all(each.is_running for each in known.values()):
            state.run = Run(version, list(known))
            return False
        # A start begins anew, unless what ended was a start too.
        if step.position is None or (step.start and not step.end) or len(known) < len(step.rows):
            return False
        return await self._answer_end_again(step.on(version), step.position, known, results)

    async def _answer_end_again(
        self, step: SequenceStep, position: int, known: dict[str, KnownSession], results: list[Result]
    ) -> bool:
        """Answer a request as the sequence's last one was answered; rows that it did not reach then take it now."""
        rows = list(zip(known.items(), step.rows, strict=False))
        ended = [(name, each.recall(row, position)) for (name, each), row in rows if each.recall is not None]
        again = {name: answer for name, answer in ended if answer is not None}
        if len(again) < len(ended):
            return False
        due: list[Result] = []
        for ((name, _), row), result in zip(rows, results, strict=True):
            if name not in again:
                due.append(self._core.step_sequence(name, row, position, step.deadline, ends=step.end))
                link(due[-1:], [result])
            elif not result.done():
                result.set_result(again[name])
        await wait(due)
        return True

    async def _answer_start_again(self, step: SequenceStep, state: SequenceState, results: list[Result]) -> bool:
        """Answer a request that repeats the start of the sequence that runs as it was answered before."""
        run = state.run
        if run is None or len(run.sessions) != len(step.rows):
            return False
        try:
            inner = self._step(step.on(run.version), state, run)
        except (SessionEndedError, NotFoundError):
            return False
        await asyncio.wait(inner)
        if any(isinstance(error_of(one), _NO_REPEAT) for one in inner):
            return False
        link(inner, results)
        if step.end and all(error_of(one) is None for one in inner):
            state.run = None
        return True

    async def _begin(self, step: SequenceStep, state: SequenceState) -> None:
        """Open a session for each row, when what runs under the same name has come to its end."""
        if state.run is not None:
            await wait(list(state.run.due))
            old, state.run = state.run, None
            await self._close(old, is_restart=True)
        await self._close_over(state)
        run = Run(step.version, [])
        try:
            for name, _ in zip(session_ids(step.key), step.rows, strict=False):
                run.version = await self._core.open_sequence(step.key.model, step.version, name)
                run.sessions.append(name)
        except BaseException:
            await self._close(run)
            raise
        state.run = run

    async def _close_over(self, state: SequenceState) -> None:
        while state.over:
            await self._close(state.over.pop())

    async def _close(self, run: Run, *, is_restart: bool = False) -> None:
        for session in run.sessions:
            try:
                await self._core.close_sequence(session, is_restart=is_restart)
            except TidegateError as error:
                log.warning("session %s of a sequence could not be closed: %s", session, error)

    # ---- steps

    def _step(self, step: SequenceStep, state: SequenceState, run: Run) -> list[Result]:
        """Hand the rows to their sessions."""
        check_fit(step, run)
        results: list[Result] = []
        try:
            for session, row in zip(run.sessions, step.rows, strict=True):
                results.append(self._core.step_sequence(session, row, step.position, step.deadline, ends=step.end))
        except BaseException as error:
            cancel(results)
            if isinstance(error, SessionEndedError | NotFoundError):
                self._drop(step.key, state, run)
            raise
        run.expect(results)
        return results

    # ---- the table

    def _add(self, key: Key) -> SequenceState:
        if len(self._states) >= self._sweep_at:
            self._sweep()
        state = self._states[key] = SequenceState()
        return state

    def _sweep(self) -> None:
        """Forget the sequences whose sessions ended by themselves; done as often as the table doubles."""
        num_known = len(self._states)
        for key, state in self._states.items():
            if state.worker is None and state.run is not None and not self._is_whole(state.run):
                self._drop(key, state, state.run)
                num_known -= 1
        self._sweep_at = 2 * num_known + _SWEEP_SLACK

    def _is_whole(self, run: Run) -> bool:
        return all(map(self._core.is_open, run.sessions))

    def _drop(self, key: Key, state: SequenceState, run: Run) -> None:
        """Let the worker close what is left of a sequence that has ended by itself."""
        if state.run is run:
            state.run = None
        state.over.append(run)
        self._wake(key, state)

    def _forget_empty(self, key: Key, state: SequenceState) -> None:
        is_empty = state.run is None and state.worker is None and not state.over
        if is_empty and self._states.get(key) is state:
            del self._states[key]
