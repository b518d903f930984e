"""One worker's process: `python -m tidegate.cluster.worker FD`, started by the supervisor with its end of the line."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import socket
import sys

from tidegate.cluster.control import Ready, Refusal, Task, decode_task, encode_answer
from tidegate.errors import ConfigurationError
from tidegate.observability.logs import logging_to
from tidegate.signals import Signals


def main() -> None:
    """Serve until a signal comes, or until the supervisor is gone."""
    # As in `tidegate serve`: no collection while modules load.
    gc.disable()
    with socket.socket(fileno=int(sys.argv[1])) as line:
        with line.makefile("rb") as reader:
            asked = reader.readline()
        if not asked:
            return  # the supervisor is gone already
        task = decode_task(asked)
        # Standard error leads to the supervisor, which makes lines of the log of it, even of the stack of a crash.
        faulthandler.enable()
        with logging_to(task.settings.log_level, task.settings.log_format):
            has_ended = _serve(task, line)
    if not has_ended:
        os._exit(0)


def _serve(task: Task, line: socket.socket) -> bool:
    from tidegate.server import run_in_loop

    try:
        return run_in_loop(lambda: _serve_for(task, line))
    except ConfigurationError as error:
        line.sendall(encode_answer(Refusal(error.message)))
        raise SystemExit(2) from None


async def _serve_for(task: Task, line: socket.socket) -> bool:
    from tidegate.server import serve

    signals = Signals()
    asyncio.get_running_loop().add_reader(line, _end, signals, line)
    return await serve(task.settings, signals, lambda facts: line.sendall(encode_answer(Ready(facts))), task.seat)


def _end(signals: Signals, line: socket.socket) -> None:
    """Nothing is sent on the line any more, so it is its end: without a supervisor there is no time for a drain."""
    asyncio.get_running_loop().remove_reader(line)
    signals.end()
    signals.end()


if __name__ == "__main__":
    main()
