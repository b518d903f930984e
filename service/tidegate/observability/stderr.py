"""Descriptor 2: what machine code writes there becomes lines of the log.

gRPC's core, onnxruntime and h2corn write their complaints straight to the descriptor: no objects where the log is
JSON, and a reader that has stopped would stop them, and whoever waits for them. Here the descriptor leads into a pipe
that is always read.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import re
import threading
from collections.abc import Iterator

log = logging.getLogger("stderr")

_LEVELS = {"I": logging.DEBUG, "V": logging.DEBUG, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_LEVEL = re.compile(r"([IWEF])[0-9]{4} [0-9:.]+ |.{0,60}?\[([VIWEF]):onnxruntime:")
"""How lines begin: absl's, which gRPC's core writes, and onnxruntime's."""

_H2CORN = '{"level":'
"""How lines of h2corn begin, which are JSON."""

_PREAMBLE = "WARNING: All log messages before absl::InitializeLog()"
"""absl says so before its first line."""

_LONGEST = 2**14
_JOIN_SECONDS = 1.0


class StderrLines:
    """Logs lines out of bytes as they come; one that is too long is logged in parts.

    Args:
        facts: Beside each line, like the worker that wrote it.
    """

    def __init__(self, **facts: str) -> None:
        self._facts = facts
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take more bytes; none at all are the end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > _LONGEST:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            if text:
                level, words = _read_line(text)
                log.log(level, words, extra=self._facts)


def _read_line(text: str) -> tuple[int, str]:
    """Return the level of a line, and what it says."""
    if text.startswith(_H2CORN):
        with contextlib.suppress(ValueError, KeyError):
            record = json.loads(text)
            if record["level"] == "info":  # of its start, its ports and its end, of which ours tell too
                return logging.DEBUG, text
            return logging.WARNING, f"h2corn: {record['subject']}: {record['detail']}"
    return _level_of(text), text


def _level_of(text: str) -> int:
    if text.startswith(_PREAMBLE):
        return logging.DEBUG
    match = _LEVEL.match(text)
    return logging.WARNING if match is None else _LEVELS[match[1] or match[2]]


@contextlib.contextmanager
def stderr_logged() -> Iterator[None]:
    """Inside the block, log what this process writes to descriptor 2.

    A process that crashes cannot log any more: the stack of its threads goes to where the descriptor led before.
    """
    was_enabled = faulthandler.is_enabled()
    before = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    faulthandler.enable(before)
    thread = threading.Thread(target=_read, args=(reader,), name="tidegate-stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.dup2(before, 2)  # the pipe's last writer is gone, and the thread ends
        if was_enabled:
            faulthandler.enable(2)
        else:
            faulthandler.disable()
        thread.join(_JOIN_SECONDS)
        os.close(before)


def _read(reader: int) -> None:
    lines = StderrLines()
    with contextlib.closing(os.fdopen(reader, "rb", buffering=0)) as pipe:
        while data := pipe.read(2**16):
            lines.feed(data)
    lines.feed(b"")
