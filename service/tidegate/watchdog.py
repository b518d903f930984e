"""Limits the time of onnxruntime's runs, which end by themselves only if their graph does: a Loop may go on for ever.

Whoever runs says what is under way; a thread looks now and then, and tells onnxruntime to stop what it has seen for too
long. onnxruntime obeys between two operators, and within the bodies of Loop and Scan: one operator that takes long is
waited for. A run neither reads a clock nor locks for this, and costs 0.2 µs more.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar
from weakref import WeakSet

from tidegate.errors import BundleError, InternalError, InvalidInputError
from tidegate.ort import REFUSAL, onnxruntime

T = TypeVar("T")

RUN_TIMEOUT = "RUN_TIMEOUT"
LOAD_TIMEOUT = "LOAD_TIMEOUT"

_MOST_PAUSE = 0.25
"""Seconds between two looks. What is stopped has had its time and at most two of these more."""


class Options:
    """Options that runs share, until one of these had to be told by them to stop.

    Args:
        entries: Of onnxruntime's configuration of a run.
    """

    __slots__ = ("_entries", "value")

    def __init__(self, entries: Mapping[str, str] | None = None) -> None:
        self._entries = dict(entries or {})
        self.renew()

    def renew(self) -> None:
        self.value = onnxruntime.RunOptions()
        for name, entry in self._entries.items():
            self.value.add_run_config_entry(name, entry)


class RunLimit:
    """The time that the runs of one graph may take, which come one after another.

    Args:
        seconds: Of one run.
        load_seconds: For loading the graph.
        clock: Monotonic seconds.

    Attributes:
        whole: Seconds that a run may take.
        seconds: What of it the next run may take.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_current",
        "_is_late",
        "_load_seconds",
        "_seen",
        "_since",
        "seconds",
        "whole",
    )

    def __init__(self, seconds: float, load_seconds: float, clock: Callable[[], float]) -> None:
        self.whole = seconds
        self.seconds = seconds  # of this run: less where several share the time of one
        self._load_seconds = load_seconds
        self._clock = clock
        # What stops what is under way. Each run has a tuple of its own, by which it is told from the next.
        self._current: tuple[onnxruntime.RunOptions | onnxruntime.SessionOptions] | None = None
        self._is_late = False
        # Of the thread that looks: what it saw first when.
        self._seen: object = None
        self._since = 0.0

    def run(self, options: Options, call: Callable[[onnxruntime.RunOptions], T]) -> T:
        """Return what ``call`` returns, which runs the graph with the options that it is given.

        Raises:
            InternalError: Its time is over; reason RUN_TIMEOUT.
            InvalidInputError: The graph refuses the values of a row, which one only a run of it alone tells.
        """
        value = options.value
        self._current = (value,)
        try:
            return call(value)
        except Exception as error:
            if value.terminate:
                raise InternalError(
                    f"the run was ended: it took more than the {self.whole:g} seconds of --run-timeout",
                    reason=RUN_TIMEOUT,
                ) from error
            if isinstance(error, REFUSAL):
                # Its text has paths of the runtime and inner names of the graph.
                message = "the model's graph refuses the input's values"
                raise InvalidInputError(message, reason="REFUSED_BY_MODEL") from error
            raise
        finally:
            self._current = None
            if self._is_late:  # told to stop, or about to be: these options are used up
                self._is_late = False
                options.renew()

    def load(self, settings: onnxruntime.SessionOptions, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, which loads a graph with ``settings``.

        Raises:
            BundleError: Its time is over; reason LOAD_TIMEOUT.
        """
        self._current = (settings,)
        try:
            return call()
        except Exception as error:
            if self._is_late:
                raise load_timeout(self._load_seconds) from error
            raise
        finally:
            self._current = None
            self._is_late = False

    def look(self) -> None:
        """Stop what is under way if its time is over. Called by another thread."""
        current, now = self._current, self._clock()
        if current is None or current is not self._seen:
            self._seen, self._since = current, now
            return
        (options,) = current
        is_run = isinstance(options, onnxruntime.RunOptions)
        if now - self._since <= (self.seconds if is_run else self._load_seconds):
            return
        # First the mark, then whether it is still under way: if so, its end comes after the mark and sees it, and the
        # options are not those of the next run, whenever they are told to stop.
        self._is_late = True
        if self._current is not current:
            return
        if is_run:
            options.terminate = True
        else:
            options.set_load_cancellation_flag(True)


NO_LIMIT = RunLimit(math.inf, math.inf, lambda: 0.0)
"""For runs that nobody looks at."""


class Watchdog:
    """One thread that looks at all graphs of a process.

    Args:
        seconds: Of one run.
        load_seconds: For loading one graph.
        clock: Monotonic seconds.
    """

    def __init__(self, seconds: float, load_seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._load_seconds = load_seconds
        self._clock = clock
        self._limits: WeakSet[RunLimit] = WeakSet()
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def limit(self) -> RunLimit:
        """Return a limit for one more graph; it is looked at for as long as somebody has it."""
        limit = RunLimit(self._seconds, self._load_seconds, self._clock)
        with self._lock:
            self._limits.add(limit)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
        return limit

    def close(self) -> None:
        """Look no more."""
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        pause = min(_MOST_PAUSE, self._seconds / 4, self._load_seconds / 4)
        while not self._is_closed.wait(pause):
            with self._lock:
                limits = list(self._limits)
            for limit in limits:
                limit.look()


def load_timeout(seconds: float) -> BundleError:
    """Return the error of a graph that takes too long to load."""
    return BundleError(f"the graph takes more than the {seconds:g} seconds of --load-timeout", reason=LOAD_TIMEOUT)
