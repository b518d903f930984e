"""The access log: a line a request, in the log's format, for a few microseconds.

Lines are put together here and not by structlog, which takes ten times as long, and those of one round of the event
loop are handed over at once. No payloads: who asked for what, how it ended, how long it took.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Literal

from tidegate.clock import Clock
from tidegate.limits import MAX_NAME_LENGTH
from tidegate.observability.requests import FinishedRequest, RequestContext

_LOGGER = "tidegate.access"


class AccessLog:
    """Makes lines. Belongs to the running event loop.

    Args:
        style: The log's format.
        clock: Whose wall clock the lines tell.
        write: Takes lines that are whole, and never waits for who reads them.
    """

    def __init__(self, style: Literal["console", "json"], clock: Clock, write: Callable[[str], None]) -> None:
        self._clock = clock
        self._line = _json_line if style == "json" else _console_line
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._lines: list[str] = []
        self._second, self._prefix = 0, ""

    def write(self, request: RequestContext, finished: FinishedRequest) -> None:
        """Let a line be written before long."""
        if not self._lines:
            self._loop.call_soon(self.flush)
        fields: dict[str, Any] = {
            "interface": finished.interface,
            "method": finished.method,
            "outcome": finished.outcome,
            "seconds": round(finished.ended - finished.began, 6),
            "request": request.id,
        }
        if finished.session:
            fields["session"] = finished.session[:MAX_NAME_LENGTH]
        if request.span is not None:
            fields["trace"] = request.span.trace_id
        self._lines.append(self._line(fields, self._timestamp(self._clock.wall())))

    def flush(self) -> None:
        """Hand over what has gathered."""
        text = "".join(self._lines)
        self._lines.clear()
        self._write(text)

    def _timestamp(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second, self._prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int(now % 1 * 1e6):06d}Z"


def _json_line(fields: dict[str, Any], timestamp: str) -> str:
    told = {**fields, "event": "request", "level": "info", "logger": _LOGGER, "timestamp": timestamp}
    return json.dumps(told) + "\n"


def _console_line(fields: dict[str, Any], timestamp: str) -> str:
    told = " ".join(f"{name}={_shown(value)}" for name, value in fields.items())
    return f"{timestamp} [info     ] request [{_LOGGER}] {told}\n"


def _shown(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)
