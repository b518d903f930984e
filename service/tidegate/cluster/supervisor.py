"""Starts the workers, restarts them when they die, and passes signals on. It serves no requests itself.

It reserves the ports, so that no other program can take them while a worker is away. Workers are new interpreters and
not forks, because gRPC and onnxruntime have threads, which a fork would lose.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import structlog

from tidegate.clock import Clock
from tidegate.cluster.control import StartRefusal, Task, WorkerReady, decode_answer, encode_task
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.socket_folder import SocketPlace, socket_place
from tidegate.config import Settings, parse_address
from tidegate.errors import ConfigurationError
from tidegate.observability.stderr import StderrLines
from tidegate.signals import Signals
from tidegate.transports.listeners import hold

LONG_LIVED_SECONDS = 60.0
PAUSES = (0.1, 0.3, 1.0, 3.0, 10.0)
_LAST_WORDS_SECONDS = 0.5
"""Time to read the rest of a dead worker's standard error; another process may hold it open."""


class Backoff:
    """Pause before a restart: longer each time, and short again after a long life."""

    def __init__(self) -> None:
        self._ended_at = float("-inf")
        self._num_short = 0

    def next(self, now: float) -> float:
        """Return the pause in seconds for a worker that has ended at ``now``."""
        self._num_short = 0 if now - self._ended_at > LONG_LIVED_SECONDS else self._num_short + 1
        self._ended_at = now
        return PAUSES[min(self._num_short, len(PAUSES) - 1)]


class WorkerProcess:
    """One worker, across restarts of its process."""

    def __init__(self, task: Task) -> None:
        self.name = task.worker.name
        self._task = task
        self._process: asyncio.subprocess.Process | None = None
        self._line: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> WorkerReady | StartRefusal:
        """Start a process; return when it answers requests, or when it has failed to start."""
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: do not import from the working directory. A new session: the supervisor passes the terminal's Ctrl-C
            # on, so it must not reach the worker too.
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
        return decode_answer(line) if line else StartRefusal(f"worker {self.name} died during its start")

    async def wait(self) -> int:
        """Wait for the end of the process and the rest of its output; return its exit code."""
        assert self._process is not None
        code = await self._process.wait()
        await asyncio.wait([self._logging], timeout=_LAST_WORDS_SECONDS)
        return code

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, if the process is running."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill the process, if there is one."""
        self.tell(signal.SIGKILL)
        if self._process is not None:
            await self.wait()

    async def _converse(self, line: socket.socket) -> bytes:
        """Send the task and return the answer; empty if the line ended before it."""
        loop = asyncio.get_running_loop()
        line.setblocking(False)
        received = b""
        with suppress(ConnectionError):
            await loop.sock_sendall(line, encode_task(self._task))
            while not received.endswith(b"\n") and (part := await loop.sock_recv(line, 65536)):
                received += part
        return received


async def _log(process: asyncio.subprocess.Process, worker: str) -> None:
    """Log a worker's standard error until it ends."""
    assert process.stderr is not None
    lines = StderrLines(worker=worker)
    while data := await process.stderr.read(2**16):
        lines.feed(data)
    lines.feed(b"")


log = structlog.stdlib.get_logger(__name__)

_ADDRESSES = ("http", "grpc")
_LEEWAY_SECONDS = 5.0
"""Time beyond the drain after which workers that still run are killed."""


def run(settings: Settings) -> None:
    """Serve by ``settings.workers`` processes until a signal ends it.

    Raises:
        ConfigurationError: A port is unavailable, or a worker cannot start; the message has the worker's reason.
    """
    with reserved(settings) as bound, socket_place(settings.data_dir) as place:
        asyncio.run(Supervisor(bound, place).run())


class Supervisor:
    """The workers of one server."""

    def __init__(self, settings: Settings, place: SocketPlace) -> None:
        replica = settings.replica or secrets.token_hex(3)
        workers = [WorkerInfo(replica, rank, settings.workers, *place) for rank in range(settings.workers)]
        self._settings = settings
        self._workers = [WorkerProcess(Task(settings, worker)) for worker in workers]
        self._clock = Clock()
        self._signals = Signals()

    async def run(self) -> None:
        """Start all workers, keep them running, and stop them at a signal."""
        with self._signals.handled():
            try:
                await self._start()
                await self._run_until_signal()
            finally:
                await asyncio.gather(*(worker.kill() for worker in self._workers))
        log.info("stopped")

    async def _start(self) -> None:
        answers = await asyncio.gather(*(worker.start() for worker in self._workers))
        for answer in answers:
            if isinstance(answer, StartRefusal):
                raise ConfigurationError(answer.message)
            facts = answer.facts
        log.info("ready", **facts, workers={worker.name: worker.pid for worker in self._workers})

    async def _run_until_signal(self) -> None:
        keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        reloading = asyncio.create_task(self._reload_on_signal())
        await self._signals.stop.wait()
        reloading.cancel()
        for task in keeping:
            task.cancel()
        await asyncio.gather(reloading, *keeping, return_exceptions=True)
        await self._end()

    async def _keep(self, worker: WorkerProcess) -> None:
        """Restart the worker whenever it has ended."""
        backoff = Backoff()
        while True:
            code = await worker.wait()
            pause = backoff.next(self._clock.monotonic())
            log.error("worker ended", worker=worker.name, code=code, again_in=pause)
            await asyncio.sleep(pause)
            answer = await worker.start()
            if isinstance(answer, WorkerReady):
                log.info("worker ready", worker=worker.name, pid=worker.pid)
            else:
                log.error("worker cannot start", worker=worker.name, error=answer.message)

    async def _reload_on_signal(self) -> None:
        while True:
            await self._signals.reload.wait()
            self._signals.reload.clear()
            for worker in self._workers:
                worker.tell(signal.SIGHUP)

    async def _end(self) -> None:
        """Drain all workers; a second signal cuts the drain short."""
        log.info("draining", seconds=self._settings.drain_timeout)
        for worker in self._workers:
            worker.tell(signal.SIGTERM)
        hurrying = asyncio.create_task(self._hurry_on_signal())
        ended = asyncio.gather(*(worker.wait() for worker in self._workers))
        with suppress(TimeoutError):
            await asyncio.wait_for(ended, self._settings.drain_timeout + _LEEWAY_SECONDS)
        hurrying.cancel()

    async def _hurry_on_signal(self) -> None:
        await self._signals.hurry.wait()
        for worker in self._workers:
            worker.tell(signal.SIGTERM)


@contextmanager
def reserved(settings: Settings) -> Iterator[Settings]:
    """Hold the ports during the block; yield the settings with the real ports in place of 0.

    Raises:
        ConfigurationError: An address is unavailable or in use.
    """
    with ExitStack() as stack:
        bound = {}
        for name in _ADDRESSES:
            text = getattr(settings, name)
            port = stack.enter_context(hold(name, text)).getsockname()[1]
            bound[name] = str(parse_address(text)._replace(port=port))
        yield settings.model_copy(update=bound)
