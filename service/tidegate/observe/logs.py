"""Logs: one stream on standard output, for people or as JSON, from structlog and the standard library alike.

Knows formats and levels. What is logged is said where it happens, and never holds what clients send: tracebacks are
written without local variables. A line that is logged for a request carries its ids, where requests are told one by
one (`detail`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Literal, Protocol, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


class Traced(Protocol):
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
    def span(self) -> Traced | None: ...


REQUEST: ContextVar[Named | None] = ContextVar("tidegate_request", default=None)
"""The request for which something is done now; None where nobody wants to know (`detail`)."""


def configure_logs(level: str, style: Literal["console", "json"], stream: TextIO | None = None) -> None:
    """Send everything that is logged from ``level`` up to ``stream`` (standard output)."""
    chosen = stream or sys.stdout
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _add_request,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(chosen)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(style, is_terminal=chosen.isatty()),
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Their lines about every start, stop and connection say nothing that ours do not.
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def _add_request(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    seen = REQUEST.get()
    if seen is not None:
        line["request"] = seen.id
        if seen.session:
            line["session"] = seen.session
        if seen.span is not None:
            line["trace"] = seen.span.trace_id
    return line


def _renderers(style: Literal["console", "json"], *, is_terminal: bool) -> Sequence[Processor]:
    if style == "json":
        return structlog.processors.format_exc_info, structlog.processors.JSONRenderer()
    formatter = structlog.dev.plain_traceback
    return (
        structlog.dev.ConsoleRenderer(
            colors=is_terminal, exception_formatter=formatter, pad_event_to=0, sort_keys=False
        ),
    )
