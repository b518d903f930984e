"""Sequences: a client names one by a number or a string, begins it, steps it and ends it.

A sequence of one row is a session of the same engine as everybody's, so it shares batches with them; one of n rows is
n sessions that step together. Requests of a sequence are applied in the order in which they arrive. What only steps
goes to the engine at once. What begins or ends a sequence has to wait (a session is opened or closed, perhaps in a
store); then requests of the same sequence that arrive meanwhile wait in its line, and those of others do not.

Knows begin, end, restart and rows. Knows nothing of tensors' names, of transports and of how a session is kept: that
is the core's, see `api.py`.
"""

from __future__ import annotations

import asyncio
import logging

from tidegate.api import KnownSession, SequenceCore
from tidegate.errors import InvalidInputError, NotFoundError, PositionConflictError, SessionEndedError, TidegateError
from tidegate.transports.oip.sequences.core import Result, SequenceStep
from tidegate.transports.oip.sequences.ids import Key, session_ids
from tidegate.transports.oip.sequences.line import Line, Run
from tidegate.transports.oip.sequences.refusals import check_fit, not_started, over
from tidegate.transports.oip.sequences.results import cancel, error_of, fail, link, wait

log = logging.getLogger(__name__)

_SWEEP_SLACK = 1024
_NO_REPEAT = PositionConflictError | SessionEndedError | NotFoundError


class Sequences:
    """All sequences of one process."""

    def __init__(self, core: SequenceCore) -> None:
        self._core = core
        self._lines: dict[Key, Line] = {}
        self._sweep_at = _SWEEP_SLACK

    def __len__(self) -> int:
        """Sequences that are known: running, or about to begin or to end."""
        return len(self._lines)

    def version(self, key: Key) -> str | None:
        """The version that the sequence runs on, None where it is not running."""
        line = self._lines.get(key)
        return None if line is None or line.run is None else line.run.version

    def submit(self, step: SequenceStep) -> list[Result]:
        """Let a request wait behind the sequence's other requests, and return the results of its rows.

        Cancelling them abandons the request. Errors arrive by the results, or are raised at once:

        Raises:
            InvalidInputError: The sequence is not running and the request does not start it, or the rows differ.
            SessionEndedError: The sequence has ended by itself; the reason says why.
        """
        line = self._lines.get(step.key)
        if line is None:
            line = self._add(step.key)
        run = line.run
        if run is not None and line.worker is None and not step.start and not step.end and len(run.sessions) == 1:
            try:
                return self._step(step, line, run)
            except (SessionEndedError, NotFoundError) as error:
                raise over(step.key, error) from error
        create = asyncio.get_running_loop().create_future
        results: list[Result] = [create() for _ in step.rows]
        line.waiting.append((step, results))
        self._wake(step.key, line)
        return results

    def explain(self, key: Key, error: TidegateError) -> TidegateError:
        """What a request is told that met ``error``; a sequence that has ended by itself is forgotten.

        The error may be an old one, of a sequence in whose place another has begun: that one goes on.
        """
        if not isinstance(error, SessionEndedError | NotFoundError):
            return error
        line = self._lines.get(key)
        if line is not None and line.run is not None and not self._is_whole(line.run):
            self._drop(key, line, line.run)
        return over(key, error)

    async def stop(self) -> None:
        """Drop what waits to be admitted; the sessions are the core's to keep."""
        workers = []
        for line in self._lines.values():
            if line.worker is not None:
                line.worker.cancel()
                workers.append(line.worker)
        await asyncio.gather(*workers, return_exceptions=True)

    # ---- admission: one request of a key after the other

    def _wake(self, key: Key, line: Line) -> None:
        if line.worker is None:
            line.worker = asyncio.create_task(self._work(key, line), name="tidegate-sequence")

    async def _work(self, key: Key, line: Line) -> None:
        try:
            await self._close_over(line)
            while line.waiting:
                step, results = line.waiting.popleft()
                try:
                    await self._admit(step, line, results)
                except (SessionEndedError, NotFoundError) as error:
                    fail(results, over(step.key, error))
                except Exception as error:  # noqa: BLE001 - it is this request's answer
                    fail(results, error)
                except BaseException:
                    cancel(results)
                    raise
                await self._close_over(line)
        finally:
            line.worker = None
            for _, results in line.waiting:
                cancel(results)
            self._forget_empty(key, line)

    async def _admit(self, step: SequenceStep, line: Line, results: list[Result]) -> None:
        if all(result.done() for result in results):
            return
        if step.start and step.position not in {None, 0}:
            raise InvalidInputError(f"a sequence starts at position 0, not {step.position}", reason="BAD_POSITION")
        if line.run is None and await self._look_up(step, line, results):
            return
        if step.start:
            if step.position is not None and await self._answer_start_again(step, line, results):
                return
            await self._begin(step, line)
        if line.run is None:
            raise not_started(step.key)
        run = line.run
        step = step.on(run.version)
        inner = self._step(step, line, run)
        link(inner, results)
        if step.start or step.end or len(inner) > 1:
            await asyncio.wait(inner)
            await self._conclude(step, line, run, inner)

    async def _conclude(self, step: SequenceStep, line: Line, run: Run, inner: list[Result]) -> None:
        """Let the sequence end where its request said so, or where it cannot go on rightly.

        That is where its start failed, for what was sent after it must not run as if nothing had happened; and where
        some rows took a step and others did not, unless a repeat with the position can still bring them together.
        """
        applied = [error_of(one) is None for one in inner]
        if step.end and all(applied):
            line.run = None  # its sessions ended with this step
        elif not all(applied) and (step.start or (any(applied) and step.position is None)):
            line.run = None
            await self._close(run)

    async def _look_up(self, step: SequenceStep, line: Line, results: list[Result]) -> bool:
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
            line.run = Run(version, list(known))
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

    async def _answer_start_again(self, step: SequenceStep, line: Line, results: list[Result]) -> bool:
        """Answer a request that repeats the start of the sequence that runs as it was answered before."""
        run = line.run
        if run is None or len(run.sessions) != len(step.rows):
            return False
        try:
            inner = self._step(step.on(run.version), line, run)
        except (SessionEndedError, NotFoundError):
            return False
        await asyncio.wait(inner)
        if any(isinstance(error_of(one), _NO_REPEAT) for one in inner):
            return False
        link(inner, results)
        if step.end and all(error_of(one) is None for one in inner):
            line.run = None
        return True

    async def _begin(self, step: SequenceStep, line: Line) -> None:
        """Open a session for each row, when what runs under the same name has come to its end."""
        if line.run is not None:
            await wait(list(line.run.due))
            old, line.run = line.run, None
            await self._close(old, is_restart=True)
        await self._close_over(line)
        run = Run(step.version, [])
        try:
            for name, _ in zip(session_ids(step.key), step.rows, strict=False):
                run.version = await self._core.open_sequence(step.key.model, step.version, name)
                run.sessions.append(name)
        except BaseException:
            await self._close(run)
            raise
        line.run = run

    async def _close_over(self, line: Line) -> None:
        while line.over:
            await self._close(line.over.pop())

    async def _close(self, run: Run, *, is_restart: bool = False) -> None:
        for session in run.sessions:
            try:
                await self._core.close_sequence(session, is_restart=is_restart)
            except TidegateError as error:
                log.warning("session %s of a sequence could not be closed: %s", session, error)

    # ---- steps

    def _step(self, step: SequenceStep, line: Line, run: Run) -> list[Result]:
        """Hand the rows to their sessions."""
        check_fit(step, run)
        results: list[Result] = []
        try:
            for session, row in zip(run.sessions, step.rows, strict=True):
                results.append(self._core.step_sequence(session, row, step.position, step.deadline, ends=step.end))
        except BaseException as error:
            cancel(results)
            if isinstance(error, SessionEndedError | NotFoundError):
                self._drop(step.key, line, run)
            raise
        run.expect(results)
        return results

    # ---- the table

    def _add(self, key: Key) -> Line:
        if len(self._lines) >= self._sweep_at:
            self._sweep()
        line = self._lines[key] = Line()
        return line

    def _sweep(self) -> None:
        """Forget the sequences whose sessions ended by themselves; done as often as the table doubles."""
        num_known = len(self._lines)
        for key, line in self._lines.items():
            if line.worker is None and line.run is not None and not self._is_whole(line.run):
                self._drop(key, line, line.run)
                num_known -= 1
        self._sweep_at = 2 * num_known + _SWEEP_SLACK

    def _is_whole(self, run: Run) -> bool:
        return all(map(self._core.is_open, run.sessions))

    def _drop(self, key: Key, line: Line, run: Run) -> None:
        """Let the worker close what is left of a sequence that has ended by itself."""
        if line.run is run:
            line.run = None
        line.over.append(run)
        self._wake(key, line)

    def _forget_empty(self, key: Key, line: Line) -> None:
        is_empty = line.run is None and line.worker is None and not line.over
        if is_empty and self._lines.get(key) is line:
            del self._lines[key]
