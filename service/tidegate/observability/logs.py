"""Logs: one stream on standard output, for people or as JSON, from structlog and the standard library alike.

Knows formats and levels, and what else is to become a line: warnings of Python, errors that nobody caught. What is
logged is said where it happens, and never holds what clients send: tracebacks are written without local variables. A
line that is logged for a request carries its ids, where requests are told one by one (`detail`).
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tidegate.clock import Clock
from tidegate.errors import TidegateError
from tidegate.observability.writer import LogWriter
from tidegate.throttle import Throttle

log = logging.getLogger(__name__)

Style = Literal["console", "json"]

CLOSE_SECONDS = 1.0
"""For the last lines, when a process ends."""

_THROTTLED = ("uvicorn.error", "asyncio", "grpc._cython.cygrpc", "py.warnings", "stderr", "tidegate.faults")
"""Loggers of which a client may cause a line by every request."""

_THROTTLE_SECONDS = 10.0
_NUMBERS = re.compile(r"0x[0-9a-f]+|[0-9]+")
"""What differs between lines that say the same: times, addresses, ids."""


class TraceSpan(Protocol):
    """A place in a trace."""

    @property
    def trace_id(self) -> str: ...

    def headers(self) -> list[tuple[str, str]]:
        """Return what tells the next server of the trace."""


class Named(Protocol):
    """A request that is under way."""

    @property
    def id(self) -> str: ...
    @property
    def session(self) -> str: ...
    @property
    def span(self) -> TraceSpan | None: ...


REQUEST: ContextVar[Named | None] = ContextVar("tidegate_request", default=None)
"""The request for which something is done now; None where nobody wants to know (`detail`)."""

_writers: list[LogWriter] = []
"""Of the logs that are open: one, where a process serves."""


@contextlib.contextmanager
def logging_to(level: str, style: Style, stream: TextIO | None = None) -> Iterator[LogWriter]:
    """Send everything that is logged from ``level`` up to ``stream`` (standard output) inside the block.

    An error that leaves the block and is none of `tidegate.errors` is logged and becomes exit code 1.
    """
    chosen = stream or sys.stdout
    root = logging.getLogger()
    handler = _Handler(chosen.fileno(), style, is_terminal=chosen.isatty())
    before = root.level, root.handlers[:]
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, *before)
        stack.callback(handler.writer.close, CLOSE_SECONDS)
        _configure(level, handler)
        stack.enter_context(_everything_caught())
        _writers.append(handler.writer)
        stack.callback(_writers.remove, handler.writer)
        try:
            yield handler.writer
        except TidegateError:
            raise
        except Exception as error:
            log.critical("the process ends: an error that nobody expected", exc_info=error)
            raise SystemExit(1) from None


def write_lines(text: str) -> None:
    """Write lines that are formatted already into the log that is open, if one is; never blocks."""
    if _writers:
        _writers[-1].write(text)


def num_dropped_lines() -> int:
    """Return how many lines of the log that is open were dropped, for nobody read them or they could not be written."""
    return _writers[-1].num_dropped if _writers else 0


class _Handler(logging.Handler):
    """Formats in the caller's thread, for what a line holds may change; writing is the writer's."""

    def __init__(self, descriptor: int, style: Style, *, is_terminal: bool) -> None:
        super().__init__()
        self.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=_SHARED,
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *_renderers(style, is_terminal=is_terminal),
                ],
            )
        )
        self.writer = LogWriter(descriptor, self._notice)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - whoever logs is not to fail, and nobody reads standard error
            line = self.format(_record(logging.ERROR, f"a line of {record.name} cannot be written: {error}"))
        self.writer.write(line + "\n")

    def _notice(self, number: int) -> str:
        text = (
            f"{number} lines of the log are missing before this one: it was not read in time, or could not be written"
        )
        return self.format(_record(logging.WARNING, text)) + "\n"


class _Throttled(logging.Filter):
    """Of lines that repeat themselves, one in a while."""

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle(_THROTTLE_SECONDS, Clock().monotonic)

    def filter(self, record: logging.LogRecord) -> bool:
        kind = getattr(record, "fault", None) or _NUMBERS.sub("", str(record.msg))
        held = self._throttle.let_through((record.name, kind))
        if held:
            record.more_like_it = held
        return held is not None


def _record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, level, __file__, 0, text, None, None)


def _configure(level: str, handler: logging.Handler) -> None:
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Their lines about every start, stop and connection say nothing that ours do not.
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def _restore(level: int, handlers: list[logging.Handler]) -> None:
    structlog.reset_defaults()
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@contextlib.contextmanager
def _everything_caught() -> Iterator[None]:
    """Log what Python would print on standard error: warnings, errors of threads and of destructors."""
    before = threading.excepthook, sys.unraisablehook
    throttled = _Throttled()
    threading.excepthook, sys.unraisablehook = _of_thread, _of_destructor
    logging.captureWarnings(capture=True)
    for name in _THROTTLED:
        logging.getLogger(name).addFilter(throttled)
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before
        logging.captureWarnings(capture=False)
        for name in _THROTTLED:
            logging.getLogger(name).removeFilter(throttled)


def _of_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is not SystemExit:
        name = "?" if arguments.thread is None else arguments.thread.name
        log.error("an error that nobody caught ended the thread %s", name, exc_info=arguments.exc_value)


def _of_destructor(arguments: Any) -> None:
    """``arguments`` is sys.UnraisableHookArgs, which exists for type checkers only."""
    log.error("an error that nobody could catch: %s", arguments.err_msg or "", exc_info=arguments.exc_value)


def _add_request(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    request = REQUEST.get()
    if request is not None:
        line["request"] = request.id
        if request.session:
            line["session"] = request.session
        if request.span is not None:
            line["trace"] = request.span.trace_id
    return line


_SHARED: tuple[Processor, ...] = (
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    _add_request,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
)


def _renderers(style: Style, *, is_terminal: bool) -> Sequence[Processor]:
    if style == "json":
        return structlog.processors.format_exc_info, structlog.processors.JSONRenderer()
    formatter = structlog.dev.plain_traceback
    return (
        structlog.dev.ConsoleRenderer(
            colors=is_terminal, exception_formatter=formatter, pad_event_to=0, sort_keys=False
        ),
    )
