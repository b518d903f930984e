"""Starts the workers, starts them again when they die, and hands signals on. Serves nothing itself.

It reserves the ports, so that they stay the server's while a worker is away. Workers are fresh interpreters, never
forks: gRPC and onnxruntime have threads, which a fork would lose.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import structlog

from tidegate.clock import Clock
from tidegate.cluster.control import Ready, Refusal, Task
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.process import Backoff, WorkerProcess
from tidegate.cluster.socket_folder import SocketPlace, socket_place
from tidegate.config import Settings, parse_address
from tidegate.errors import ConfigurationError
from tidegate.signals import Signals
from tidegate.transports.listeners import hold

log = structlog.stdlib.get_logger(__name__)

_ADDRESSES = ("http", "grpc")
_LEEWAY_SECONDS = 5.0
"""What workers get beyond the drain to end, before they are killed."""


def run(settings: Settings) -> None:
    """Serve by ``settings.workers`` processes until a signal ends it.

    Raises:
        ConfigurationError: A port cannot be had, or a worker cannot start: with the worker's own reason.
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
        """Start all, keep them running, and end them when told."""
        with self._signals.handled():
            try:
                await self._start()
                await self._keep_until_told()
            finally:
                await asyncio.gather(*(worker.kill() for worker in self._workers))
        log.info("stopped")

    async def _start(self) -> None:
        answers = await asyncio.gather(*(worker.start() for worker in self._workers))
        for answer in answers:
            if isinstance(answer, Refusal):
                raise ConfigurationError(answer.message)
            facts = answer.facts
        log.info("ready", **facts, workers={worker.name: worker.pid for worker in self._workers})

    async def _keep_until_told(self) -> None:
        keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        reloading = asyncio.create_task(self._reload_when_told())
        await self._signals.stop.wait()
        reloading.cancel()
        for task in keeping:
            task.cancel()
        await asyncio.gather(reloading, *keeping, return_exceptions=True)
        await self._end()

    async def _keep(self, worker: WorkerProcess) -> None:
        """Start the worker again whenever it has ended."""
        backoff = Backoff()
        while True:
            code = await worker.wait()
            pause = backoff.next(self._clock.monotonic())
            log.error("worker ended", worker=worker.name, code=code, again_in=pause)
            await asyncio.sleep(pause)
            answer = await worker.start()
            if isinstance(answer, Ready):
                log.info("worker ready", worker=worker.name, pid=worker.pid)
            else:
                log.error("worker cannot start", worker=worker.name, error=answer.message)

    async def _reload_when_told(self) -> None:
        while True:
            await self._signals.reload.wait()
            self._signals.reload.clear()
            for worker in self._workers:
                worker.tell(signal.SIGHUP)

    async def _end(self) -> None:
        """Let all drain, each within its bound; a second signal hurries them."""
        log.info("draining", seconds=self._settings.drain_timeout)
        for worker in self._workers:
            worker.tell(signal.SIGTERM)
        hurrying = asyncio.create_task(self._hurry_when_told())
        ended = asyncio.gather(*(worker.wait() for worker in self._workers))
        with suppress(TimeoutError):
            await asyncio.wait_for(ended, self._settings.drain_timeout + _LEEWAY_SECONDS)
        hurrying.cancel()

    async def _hurry_when_told(self) -> None:
        await self._signals.hurry.wait()
        for worker in self._workers:
            worker.tell(signal.SIGTERM)


@contextmanager
def reserved(settings: Settings) -> Iterator[Settings]:
    """Hold the ports inside the block; yield the settings with the ports that were taken where 0 was asked for.

    Raises:
        ConfigurationError: An address cannot be had, or somebody listens there.
    """
    with ExitStack() as stack:
        bound = {}
        for name in _ADDRESSES:
            text = getattr(settings, name)
            port = stack.enter_context(hold(name, text)).getsockname()[1]
            bound[name] = str(parse_address(text)._replace(port=port))
        yield settings.model_copy(update=bound)
