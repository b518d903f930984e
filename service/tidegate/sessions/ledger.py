"""What all sessions of this process write and read goes through here: grouped, bounded in time, and honest about what
is not known.

While one group of writes is under way the next one gathers, so a busy store is given fewer and larger groups. After an
error or a time-out the outcome is looked up: a write's own revision in the store means that it was made; any other
means that nobody knows, for others may have gone on from it. While the store is away everybody is told so at once, and
it is asked again and again until it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from tidegate.errors import ConfigurationError, TidegateError, UnavailableError
from tidegate.observe.histogram import Histogram, Reading
from tidegate.sessions.stores.store import Entry, SessionKey, Store, Stored, Write

log = logging.getLogger(__name__)

_PROBE_SECONDS = 0.25
_RETRY_AFTER = 1.0

Written = bool | TidegateError
"""What became of a write: made; refused, for another revision is there; or nobody knows, and why."""

Result = TypeVar("Result")


class LedgerStatistics(NamedTuple):
    """Counters since the start; ``seconds`` that each group of writes took; ``is_reachable`` as of now."""

    num_groups: int
    num_writes: int
    num_conflicts: int
    num_failures: int
    seconds: Reading
    is_reachable: bool


class Ledger:
    """Access to a store.

    Args:
        store: Not started yet.
        timeout: Seconds that one access may take.
        clock: Monotonic seconds.
    """

    def __init__(self, store: Store, timeout: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._timeout = timeout
        self._clock = clock
        self._waiting: list[tuple[Sequence[Write], asyncio.Future[list[Written]]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self._is_started = False
        self.is_reachable = False
        self.changed = asyncio.Event()
        self._num_groups = self._num_writes = self._num_conflicts = self._num_failures = 0
        self._seconds = Histogram()

    async def start(self) -> None:
        """Open the store; one that does not answer yet is waited for in the background.

        Raises:
            ConfigurationError: It can never work.
        """
        try:
            await self._open()
        except (UnavailableError, TimeoutError) as error:
            self._lose(error)

    async def stop(self) -> None:
        """Let what was begun end, then let go of the store."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        with contextlib.suppress(UnavailableError):
            await self._store.stop()

    def statistics(self) -> LedgerStatistics:
        return LedgerStatistics(
            self._num_groups,
            self._num_writes,
            self._num_conflicts,
            self._num_failures,
            self._seconds.reading(),
            self.is_reachable,
        )

    async def write(self, writes: Sequence[Write]) -> list[Written]:
        """Make writes of different sessions, each by itself, together with what others write just now."""
        if not self.is_reachable:
            return [_away()] * len(writes)
        future: asyncio.Future[list[Written]] = asyncio.get_running_loop().create_future()
        self._waiting.append((writes, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="tidegate-ledger")
        # A caller that is cancelled leaves; its writes are made all the same.
        return await asyncio.shield(future)

    async def write_one(self, write: Write) -> bool:
        """Make one write; return whether it was made.

        Raises:
            UnavailableError: Nobody knows.
        """
        (written,) = await self.write([write])
        if isinstance(written, TidegateError):
            raise written
        return written

    async def read(self, key: SessionKey) -> Entry | None:
        """Return what is stored of a session; UnavailableError."""
        (entry,) = await self.ask(lambda store: store.read([key]))
        return entry

    async def read_summary(self, key: SessionKey) -> Stored | None:
        """Return what is stored of a session, without its body; UnavailableError."""
        (stored,) = await self.ask(lambda store: store.read_summaries([key]))
        return stored

    async def ask(self, question: Callable[[Store], Awaitable[Result]]) -> Result:
        """Ask the store something by one call of it, bounded in time; UnavailableError."""
        if not self.is_reachable:
            raise _away()
        try:
            async with asyncio.timeout(self._timeout):
                return await question(self._store)
        except (UnavailableError, TimeoutError) as error:
            if _told(error).reason == "STORE_CORRUPT" and await self._answers():
                raise  # one record's trouble, not everybody's
            raise self._lose(error) from error

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                await self._store.ping()
        except (UnavailableError, TimeoutError):
            return False
        return True

    async def _write_all(self) -> None:
        while self._waiting:
            group = self._take_group()
            writes = [write for some, _ in group for write in some]
            started = self._clock()
            try:
                results = await self._write_group(writes)
            except Exception as error:
                log.exception("%d writes failed", len(writes))
                results = [UnavailableError(f"the store failed: {error}", reason="STORE_AWAY")] * len(writes)
            self._count(results, self._clock() - started)
            for some, future in group:
                own, results = results[: len(some)], results[len(some) :]
                if not future.done():
                    future.set_result(own)

    def _take_group(self) -> list[tuple[Sequence[Write], asyncio.Future[list[Written]]]]:
        """Take what waits, in order, up to the first that touches a session for the second time."""
        seen: set[SessionKey] = set()
        size = 0
        for writes, _ in self._waiting:
            keys = {write.key for write in writes}
            if seen & keys:
                break
            seen |= keys
            size += 1
        group, self._waiting = self._waiting[:size], self._waiting[size:]
        return group

    async def _write_group(self, writes: Sequence[Write]) -> list[Written]:
        try:
            async with asyncio.timeout(self._timeout):
                return list(await self._store.write(writes))
        except (UnavailableError, TimeoutError) as error:
            return await self._find_out(writes, _told(error))

    async def _find_out(self, writes: Sequence[Write], error: TidegateError) -> list[Written]:
        """Look up what became of writes whose reply did not come."""
        try:
            async with asyncio.timeout(self._timeout):
                entries = await self._store.read_summaries([write.key for write in writes])
        except (UnavailableError, TimeoutError):
            self._lose(error)
            return [error] * len(writes)
        return [_outcome(write, entry, error) for write, entry in zip(writes, entries, strict=True)]

    def _count(self, results: Sequence[Written], seconds: float) -> None:
        self._num_groups += 1
        self._num_writes += len(results)
        self._num_conflicts += sum(result is False for result in results)
        self._num_failures += sum(isinstance(result, TidegateError) for result in results)
        self._seconds.add(seconds)

    # ---- is it there?

    async def _open(self) -> None:
        async with asyncio.timeout(self._timeout):
            if self._is_started:
                await self._store.ping()
            else:
                await self._store.start()
        self._is_started = True
        self._tell(is_reachable=True)

    def _lose(self, error: Exception) -> UnavailableError:
        """The store is away from now on, until it answers again."""
        told = _told(error)
        if self.is_reachable or self._prober is None:
            log.warning("the store is away: %s", told.message)
        self._tell(is_reachable=False)
        if self._prober is None or self._prober.done():
            self._prober = asyncio.create_task(self._probe(), name="tidegate-store-probe")
        return told

    async def _probe(self) -> None:
        while not self.is_reachable:
            await asyncio.sleep(_PROBE_SECONDS)
            try:
                await self._open()
            except ConfigurationError as error:
                log.error("the store cannot be used: %s", error.message)  # noqa: TRY400 - an error of theirs
            except (UnavailableError, TimeoutError):
                continue
            except Exception:
                log.exception("the store could not be asked")
            else:
                log.warning("the store answers again")

    def _tell(self, *, is_reachable: bool) -> None:
        if self.is_reachable != is_reachable:
            self.is_reachable = is_reachable
            self.changed.set()


def _outcome(write: Write, entry: Stored | None, error: TidegateError) -> Written:
    # Where what it expects is there, it may still be on its way. Where another revision is, it may have been made, and
    # others gone on from it: made again, a rewind would take back their steps.
    return True if entry is not None and entry.revision == write.revision else error


def _told(error: Exception) -> UnavailableError:
    if isinstance(error, UnavailableError):
        error.retry_after = error.retry_after or _RETRY_AFTER
        return error
    return UnavailableError("the store did not answer in time", reason="STORE_AWAY", retry_after=_RETRY_AFTER)


def _away() -> UnavailableError:
    return UnavailableError("the store is away", reason="STORE_AWAY", retry_after=_RETRY_AFTER)
