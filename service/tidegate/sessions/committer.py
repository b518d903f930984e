"""What all sessions of this process write and read goes through here: grouped, bounded, and honest about what is not
known.

While one group of writes is under way the next one gathers, so a busy store is given fewer and larger groups. After an
error or a time-out the outcome is looked up: a write's own revision in the store means that it was made; any other
means that nobody knows, for others may have gone on from it. Reads gather likewise, and few calls other than writes are
with the store at once: whoever asks for much waits behind itself, and no write waits behind that.

The store is *away* when it cannot be written, whatever else it answers. A call that fails does not say so, for it may
be the call's own trouble, or its own size: then the store is asked by a small write of ours, and that decides. Who is
ready, which health is told and what metrics show is `is_available`, and nothing else. While the store is away everybody
is told so at once, and it is asked again and again until it can be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from tidegate.api import SessionKey, StoreStatistics
from tidegate.errors import ConfigurationError, InternalError, TidegateError, UnavailableError
from tidegate.histogram import Histogram
from tidegate.limits import (
    MAX_STORE_ENTRIES,
    MAX_STORE_QUESTIONS,
    MAX_STORE_SUMMARIES,
    MAX_STORE_WRITE_BYTES,
    MAX_STORE_WRITES,
)
from tidegate.sessions.stores.store import Entry, Store, Stored, Write, trouble

log = logging.getLogger(__name__)

_PROBE_SECONDS = 0.25
_RETRY_AFTER = 1.0
_DAMAGE_SECONDS = 10.0
"""Between two lines about damaged records."""

Written = bool | TidegateError
"""What became of a write: made; refused, for another revision is there; or nobody knows, and why."""

Result = TypeVar("Result")
Found = TypeVar("Found")


class GroupCommitter:
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
        self._questions = asyncio.Semaphore(MAX_STORE_QUESTIONS)
        self._entries = _BatchReader(self._read_entries, MAX_STORE_ENTRIES)
        self._summaries = _BatchReader(self._read_summaries, MAX_STORE_SUMMARIES)
        self._is_started = False
        # Whether the store can be written, as far as is known; `changed` is set when that changes.
        self.is_available = False
        self.changed = asyncio.Event()
        self._checking = asyncio.Lock()
        self._num_checked = 0
        self._prober: asyncio.Task[None] | None = None
        self._reason = "STORE_AWAY"  # why it is away
        self._trouble = ""  # what the log was told last
        self._num_groups = self._num_writes = self._num_conflicts = self._num_failures = 0
        self._num_damaged = 0
        self._damage_logged_at = -math.inf
        self._seconds = Histogram()

    async def start(self) -> None:
        """Open the store; one that cannot be written yet is waited for in the background.

        Raises:
            ConfigurationError: It can never work.
        """
        try:
            await self._open()
        except (UnavailableError, TimeoutError) as error:
            self._mark_away(_as_unavailable(error))

    async def stop(self) -> None:
        """Let what was begun end, then let go of the store."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        await self._entries.stop()
        await self._summaries.stop()
        with contextlib.suppress(UnavailableError):
            await self._store.stop()

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            self._num_groups,
            self._num_writes,
            self._num_conflicts,
            self._num_failures,
            self._seconds.snapshot(),
            self.is_available,
            self._num_damaged,
        )

    @contextlib.contextmanager
    def counting_damage(self) -> Iterator[None]:
        """Count and log the damaged records that are met in this block, and let the error pass.

        They are told to whoever asks for them; the log gets a line now and then, however often that is.
        """
        try:
            yield
        except InternalError as error:
            if error.reason == "STORE_CORRUPT":
                self._num_damaged += 1
                self._log_damage(error)
            raise

    def _log_damage(self, error: TidegateError) -> None:
        now = self._clock()
        if now - self._damage_logged_at >= _DAMAGE_SECONDS:
            log.error("%s (damaged records were met %d times so far)", error, self._num_damaged)
            self._damage_logged_at = now

    # ---- writes

    async def write(self, writes: Sequence[Write]) -> list[Written]:
        """Make writes of different sessions, each by itself, together with what others write just now."""
        if not self.is_available:
            return [self._away_error()] * len(writes)
        future: asyncio.Future[list[Written]] = asyncio.get_running_loop().create_future()
        self._waiting.append((writes, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="tidegate-commits")
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

    async def _write_all(self) -> None:
        while self._waiting:
            group = self._take_group()
            writes = [write for some, _ in group for write in some]
            started = self._clock()
            try:
                results = await self._write_group(writes)
            except Exception:
                log.exception("%d writes failed together", len(writes))
                results = [await self._write_alone(write) for write in writes]
            self._count(results, self._clock() - started)
            for some, future in group:
                own, results = results[: len(some)], results[len(some) :]
                if not future.done():
                    future.set_result(own)

    def _take_group(self) -> list[tuple[Sequence[Write], asyncio.Future[list[Written]]]]:
        """Take what waits, in order, up to the first that touches a session for the second time, or is too much."""
        seen: set[SessionKey] = set()
        size = num_writes = num_bytes = 0
        for writes, _ in self._waiting:
            keys = {write.key for write in writes}
            num_writes += len(writes)
            num_bytes += sum(len(write.body or b"") for write in writes)
            if size and (seen & keys or num_writes > MAX_STORE_WRITES or num_bytes > MAX_STORE_WRITE_BYTES):
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
            return await self._look_up_outcomes(writes, _as_unavailable(error))

    async def _write_alone(self, write: Write) -> Written:
        """Make a write that may have been made, with others, by a call that broke."""
        try:
            (written,) = await self._write_group([write])
            if written is False:
                (written,) = await self._look_up_outcomes([write], None)
        except Exception as error:
            log.exception("a write of session %s failed", write.key.id)
            return trouble("STORE_AWAY", str(error))
        return written

    async def _look_up_outcomes(self, writes: Sequence[Write], error: UnavailableError | None) -> list[Written]:
        """Look up what became of writes whose reply did not come; ``error`` None: they are not made if not there."""
        try:
            async with asyncio.timeout(self._timeout):
                entries = await self._store.read_summaries([write.key for write in writes])
        except (UnavailableError, TimeoutError) as failure:
            error = error or _as_unavailable(failure)
            self._mark_away(error)
            return [error] * len(writes)
        await self._check_writable()
        return [_outcome(write, entry, error) for write, entry in zip(writes, entries, strict=True)]

    def _count(self, results: Sequence[Written], seconds: float) -> None:
        self._num_groups += 1
        self._num_writes += len(results)
        self._num_conflicts += sum(result is False for result in results)
        self._num_failures += sum(isinstance(result, TidegateError) for result in results)
        self._seconds.add(seconds)

    # ---- questions

    async def read(self, key: SessionKey) -> Entry | None:
        """Return what is stored of a session; UnavailableError."""
        return await self._entries.ask(key)

    async def read_summary(self, key: SessionKey) -> Stored | None:
        """Return what is stored of a session, without its body; UnavailableError."""
        return await self._summaries.ask(key)

    async def read_summaries(self, keys: Sequence[SessionKey]) -> list[Stored | None]:
        """Return what is stored of sessions, without the bodies, in order; UnavailableError."""
        return await self._summaries.ask_all(keys)

    async def _read_entries(self, keys: list[SessionKey]) -> list[Entry | None]:
        return await self.ask(lambda store: store.read(keys))

    async def _read_summaries(self, keys: list[SessionKey]) -> list[Stored | None]:
        return await self.ask(lambda store: store.read_summaries(keys))

    async def ask(self, question: Callable[[Store], Awaitable[Result]]) -> Result:
        """Ask the store something by one call of it, bounded in time once its turn has come; UnavailableError."""
        async with self._questions:
            if not self.is_available:
                raise self._away_error()
            try:
                async with asyncio.timeout(self._timeout):
                    return await question(self._store)
            except (UnavailableError, TimeoutError) as error:
                failure = _as_unavailable(error)
        # Not in a place that others wait for.
        await self._check_writable()
        raise failure

    # ---- can it be written?

    async def _check_writable(self) -> None:
        """Find out, after a call failed, whether the store can be written; it is away if it cannot."""
        wanted = (
            self._num_checked + 1 + self._checking.locked()
        )  # one that began before says nothing of what came since
        async with self._checking:
            if not self.is_available or self._num_checked >= wanted:
                return
            try:
                async with asyncio.timeout(self._timeout):
                    await self._store.ping()
            except (UnavailableError, TimeoutError) as error:
                self._mark_away(_as_unavailable(error))
            except Exception as error:
                log.exception("the store could not be asked")
                self._mark_away(trouble("STORE_AWAY", str(error)))
            self._num_checked += 1

    async def _open(self) -> None:
        async with asyncio.timeout(self._timeout):
            if self._is_started:
                await self._store.ping()
            else:
                await self._store.start()
        self._is_started = True
        self._trouble = ""
        self._set_available(is_available=True)

    def _mark_away(self, error: UnavailableError) -> None:
        """The store is away from now on, until it can be written."""
        self._reason = error.reason
        self._log_once("the store is away", error)
        self._set_available(is_available=False)
        if self._prober is None or self._prober.done():
            self._prober = asyncio.create_task(self._probe(), name="tidegate-store-probe")

    def _away_error(self) -> UnavailableError:
        return UnavailableError("the store is away", reason=self._reason, retry_after=_RETRY_AFTER)

    async def _probe(self) -> None:
        while not self.is_available:
            await asyncio.sleep(_PROBE_SECONDS)
            try:
                await self._open()
            except ConfigurationError as error:
                self._log_once("the store cannot be used", error)
            except (UnavailableError, TimeoutError):
                continue
            except Exception as error:  # noqa: BLE001 - a store that breaks is one that is away
                self._log_once("the store could not be asked", error)
            else:
                log.warning("the store is back: it can be written")

    def _log_once(self, what: str, error: Exception) -> None:
        """Log trouble once, however often the store is asked meanwhile."""
        cause = error.cause if isinstance(error, TidegateError) and error.cause else str(error)
        line = f"{what}: {cause}"
        if line != self._trouble:
            log.warning("%s", line)
            self._trouble = line

    def _set_available(self, *, is_available: bool) -> None:
        if self.is_available != is_available:
            self.is_available = is_available
            self.changed.set()


class _BatchReader(Generic[Found]):
    """Questions for one thing each, asked by few calls for many: one call at a time, of what came meanwhile.

    Args:
        read: Asks for several at once.
        most: How many.
    """

    def __init__(self, read: Callable[[list[SessionKey]], Awaitable[list[Found]]], most: int) -> None:
        self._read = read
        self._most = most
        self._waiting: OrderedDict[SessionKey, asyncio.Future[Found]] = OrderedDict()
        self._reader: asyncio.Task[None] | None = None

    async def ask(self, key: SessionKey) -> Found:
        # A caller that is cancelled leaves; others may wait for the same.
        return await asyncio.shield(self._enqueue(key))

    async def ask_all(self, keys: Sequence[SessionKey]) -> list[Found]:
        futures = [self._enqueue(key) for key in keys]
        if futures:
            await asyncio.wait(futures)
        return [future.result() for future in futures]

    def _enqueue(self, key: SessionKey) -> asyncio.Future[Found]:
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read_all(), name="tidegate-store-reads")
        return future

    async def stop(self) -> None:
        """Let what was begun end; who still waits is told."""
        waiting, self._waiting = self._waiting, OrderedDict()
        for future in waiting.values():
            _fail(future, UnavailableError("the server is stopping", reason="DRAINING"))
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read_all(self) -> None:
        while self._waiting:
            size = min(len(self._waiting), self._most)
            group = dict(self._waiting.popitem(last=False) for _ in range(size))
            await self._read_group(group)

    async def _read_group(self, group: dict[SessionKey, asyncio.Future[Found]]) -> None:
        try:
            found = await self._read(list(group))
        except UnavailableError as error:
            for future in group.values():
                _fail(future, error)
        except Exception as error:  # noqa: BLE001 - told to who asked for what breaks the call
            if len(group) == 1:
                (future,) = group.values()
                _fail(future, error)
                return
            for key, future in group.items():
                await self._read_group({key: future})
        else:
            for future, each in zip(group.values(), found, strict=True):
                future.set_result(each)


def _fail(future: asyncio.Future[Found], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # looked at: whoever waited may have gone


def _outcome(write: Write, entry: Stored | None, error: UnavailableError | None) -> Written:
    # Where what it expects is there, it may still be on its way. Where another revision is, it may have been made, and
    # others gone on from it: made again, a rewind would take back their steps.
    return True if entry is not None and entry.revision == write.revision else error or False


def _as_unavailable(error: Exception) -> UnavailableError:
    if isinstance(error, UnavailableError):
        error.retry_after = error.retry_after or _RETRY_AFTER
        return error
    return UnavailableError("the store did not answer in time", reason="STORE_AWAY", retry_after=_RETRY_AFTER)
