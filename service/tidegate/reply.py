"""Where a result goes: a reply calls back at once, within the tick in which its result is made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, Protocol, TypeAlias, cast

from tidegate.errors import TidegateError, UnavailableError
from tidegate.faults import conceal

log = logging.getLogger(__name__)

RowResult: TypeAlias = Any
"""A `tidegate.api.StepResult`, or the error in its place."""


class Reply(Protocol):
    """Where the result of a request of one row goes; an ``asyncio.Future`` is one.

    It is called within the tick, so it must not wait and should not raise. It is ``done`` early when the caller has
    gone.
    """

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


class RowBlock(Protocol):
    """The results of some rows as arrays (`tidegate.engine.request.StepBlock`)."""

    @property
    def starts(self) -> Sequence[int]: ...
    @property
    def length(self) -> int: ...
    @property
    def predictions(self) -> Any: ...
    @property
    def drift(self) -> Mapping[int, Any]: ...
    def result(self, row: int) -> Any: ...


class DirectReply:
    """A `Reply` that calls back at once, within the tick: no task wakes, and the event loop has no turn in between."""

    __slots__ = ("_callback", "_context", "_error", "_is_cancelled", "_is_done", "_on_cancel", "_result")

    def __init__(self) -> None:
        self._is_done = self._is_cancelled = False
        self._callback: Callable[[Any], object] | None = None
        self._on_cancel: list[Callable[[], object]] = []
        self._context: Context | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._is_done

    def cancelled(self) -> bool:
        return self._is_cancelled

    def cancel(self) -> bool:
        """Take note that nobody waits any more; return whether the result was still to come."""
        if self._is_done:
            return False
        self._is_done = self._is_cancelled = True
        for cancel in self._on_cancel:
            cancel()
        return True

    def cancel_too(self, cancel: Callable[[], object]) -> None:
        """Have something else called when this is cancelled."""
        self._on_cancel.append(cancel)

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None:
        """Have the one callback called with this, in the context of now, when the result comes; it must not be here."""
        self._callback = callback
        self._context = copy_context()

    def set_result(self, result: Any, /) -> None:
        self._result = result
        self._finish()

    def set_exception(self, error: BaseException, /) -> None:
        self._error = error
        self._finish()

    def result(self) -> Any:
        """Return the result, or raise the error."""
        if self._error is not None:
            raise self._error
        return self._result

    def exception(self) -> BaseException | None:
        return self._error

    def _finish(self) -> None:
        self._is_done = True
        if self._callback is not None:
            assert self._context is not None
            try:
                self._context.run(self._callback, self)
            except Exception:  # of whoever waits for this; the tick has others to answer
                log.exception("a reply could not be passed on")


class RowsReply(DirectReply):
    """Where the results of a message's rows go, in blocks or one by one; it is done when all are there.

    Args:
        num_rows: How many there will be.
        on_rows: Called with how many were just answered.

    Attributes:
        blocks: Results as arrays, with the numbers of their rows.
        apart: The other rows' results.
    """

    __slots__ = ("_num_open", "_on_rows", "apart", "blocks", "num_rows")

    def __init__(self, num_rows: int, on_rows: Callable[[int], object] | None = None) -> None:
        super().__init__()
        self.num_rows = self._num_open = num_rows
        self._on_rows = on_rows
        self.blocks: list[tuple[Sequence[int], RowBlock]] = []
        self.apart: dict[int, RowResult] = {}

    def put(self, row: int, result: RowResult) -> None:
        self.apart[row] = result
        self._count(1)

    def put_block(self, rows: Sequence[int], block: RowBlock) -> None:
        self.blocks.append((rows, block))
        self._count(len(rows))

    def results(self) -> list[RowResult]:
        """Return each row's result, in order."""
        found = dict(self.apart)
        for rows, block in self.blocks:
            found.update((row, block.result(place)) for place, row in enumerate(rows))
        return [found[row] for row in range(self.num_rows)]

    def _count(self, num_rows: int) -> None:
        self._num_open -= num_rows
        if self._on_rows is not None:
            self._on_rows(num_rows)
        if not self._num_open and not self._is_done:
            self._finish()


class RowReply:
    """Where the result of one row of a message goes that is a request of its own: a `Reply`."""

    __slots__ = ("_reply", "_row")

    def __init__(self, reply: RowsReply, row: int) -> None:
        self._reply = reply
        self._row = row

    def done(self) -> bool:
        return self._reply.done()

    def set_result(self, result: Any, /) -> None:
        self._reply.put(self._row, result)

    def set_exception(self, error: BaseException, /) -> None:
        self._reply.put(self._row, error if isinstance(error, TidegateError) else conceal(cast("Exception", error)))

    def cancel_too(self, cancel: Callable[[], object]) -> None:
        self._reply.cancel_too(cancel)


def follow(future: asyncio.Future[Any], reply: DirectReply | RowReply) -> None:
    """Hand a future's result to a reply, which cancels the future when it is cancelled."""

    def finish(future: asyncio.Future[Any]) -> None:
        error = _is_draining() if future.cancelled() else future.exception()
        if reply.done():
            return
        if error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(future.result())

    future.add_done_callback(finish)
    reply.cancel_too(future.cancel)


def _is_draining() -> UnavailableError:
    return UnavailableError("the server is draining: send it again", reason="DRAINING", retry_after=1)
