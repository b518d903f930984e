"""Descriptor 2 as a pipe that is read into the log: what libraries write there can neither block nor get lost."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator

from tidegate.clock import Clock

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
_LONGEST_LINE = 4096
_LINES_A_SECOND = 10


@contextlib.contextmanager
def standard_error_in_log(clock: Clock | None = None) -> Iterator[None]:
    """Let the log have what is written to descriptor 2, as long as the block. The log itself must go elsewhere."""
    reader, writer = os.pipe()
    former = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(
        target=_read, args=(reader, (clock or Clock()).monotonic), name="tidegate-stderr", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        os.dup2(former, 2)  # was the pipe's last end for writing
        os.close(former)
        thread.join()
        os.close(reader)


def _read(reader: int, clock: Callable[[], float]) -> None:
    rest, num_told, num_dropped, second = b"", 0, 0, clock()
    while chunk := os.read(reader, _CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[:_LONGEST_LINE]
        for line in lines:
            if clock() - second >= 1:
                _tell_dropped(num_dropped)
                num_told, num_dropped, second = 0, 0, clock()
            text = _worth_telling(line[:_LONGEST_LINE].decode(errors="replace").rstrip())
            if not text:
                continue
            if num_told < _LINES_A_SECOND:
                logger.warning("standard error: %s", text)
                num_told += 1
            else:
                num_dropped += 1
    _tell_dropped(num_dropped)


def _tell_dropped(count: int) -> None:
    if count:
        logger.warning("standard error: %d more lines", count)


def _worth_telling(line: str) -> str:
    """Return what is to be logged of a line; empty for h2corn's own words about its start."""
    if not line.startswith('{"level":'):
        return line
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return "" if record.get("level") == "info" else f"h2corn: {record.get('subject')}: {record.get('detail')}"
