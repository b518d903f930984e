"""A worker as its supervisor sees it: a process that is started, told signals, and awaited."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import suppress

from tidegate.cluster.control import Ready, Refusal, Task, decode_answer, encode_task
from tidegate.observability.stderr import StderrLines

LONG_LIVED_SECONDS = 60.0
PAUSES = (0.1, 0.3, 1.0, 3.0, 10.0)
_LAST_WORDS_SECONDS = 0.5
"""For what a worker's standard error still holds; somebody else may hold it open."""


class Backoff:
    """How long to wait before starting again: longer each time, anew when it had lived for long."""

    def __init__(self) -> None:
        self._ended_at = float("-inf")
        self._num_short = 0

    def next(self, now: float) -> float:
        """Return the pause in seconds, of a worker that has ended at ``now``."""
        self._num_short = 0 if now - self._ended_at > LONG_LIVED_SECONDS else self._num_short + 1
        self._ended_at = now
        return PAUSES[min(self._num_short, len(PAUSES) - 1)]


class WorkerProcess:
    """One worker, whichever process it is at the moment."""

    def __init__(self, task: Task) -> None:
        self.name = task.worker.name
        self._task = task
        self._process: asyncio.subprocess.Process | None = None
        self._line: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> Ready | Refusal:
        """Start a process; return when it answers requests, or when it is clear that it never will."""
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: nothing is imported from the folder that the server was started in. A session of its own: a terminal's
            # Ctrl-C is the supervisor's to hand on.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "tidegate.cli.worker", str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        self._logging = asyncio.create_task(_log(self._process, self.name), name="tidegate-worker-stderr")
        if self._line is not None:
            self._line.close()
        self._line = ours
        line = await self._converse(ours)
        return decode_answer(line) if line else Refusal(f"worker {self.name} died while it started")

    async def wait(self) -> int:
        """Return the exit code when the process has ended, and what it said last is logged."""
        assert self._process is not None
        code = await self._process.wait()
        await asyncio.wait([self._logging], timeout=_LAST_WORDS_SECONDS)
        return code

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, if there is a process to hear it."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def kill(self) -> None:
        """End the process, if there is one, at once."""
        self.tell(signal.SIGKILL)
        if self._process is not None:
            await self.wait()

    async def _converse(self, line: socket.socket) -> bytes:
        """Send the task and return the answer, empty where the line ended before it."""
        loop = asyncio.get_running_loop()
        line.setblocking(False)
        received = b""
        with suppress(ConnectionError):
            await loop.sock_sendall(line, encode_task(self._task))
            while not received.endswith(b"\n") and (part := await loop.sock_recv(line, 65536)):
                received += part
        return received


async def _log(process: asyncio.subprocess.Process, worker: str) -> None:
    """Log what a worker writes to its standard error, to the end of it."""
    assert process.stderr is not None
    lines = StderrLines(worker=worker)
    while data := await process.stderr.read(2**16):
        lines.feed(data)
    lines.feed(b"")
