"""How a floor runs: on the server's own event loop, with its garbage collector settings, until it is terminated."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Coroutine

import uvloop


def say_ready(port: int) -> None:
    """Tell the harness, in the form of the server's log."""
    gc.freeze()
    sys.stdout.write(json.dumps({"event": "ready", "port": port}) + "\n")
    sys.stdout.flush()


def run(main: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
