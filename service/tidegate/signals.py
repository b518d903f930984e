"""What the process is told by signals; whoever owns the process handles them here, nobody else does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator


class Signals:
    """What the process was told: to ``stop``, then to ``hurry``; and, any time, to ``reload``."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.reload = asyncio.Event()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the process's signals inside the block."""
        handlers = {signal.SIGTERM: self.end, signal.SIGINT: self.end, signal.SIGHUP: self.reload.set}
        loop = asyncio.get_running_loop()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """The first time stop, the second time hurry."""
        (self.hurry if self.stop.is_set() else self.stop).set()
