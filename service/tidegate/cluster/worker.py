"""A worker's process. It serves as part of the cluster until a signal comes or the supervisor is gone."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import grpc

from tidegate.api import Core
from tidegate.cluster.control import StartRefusal, Task, WorkerReady, decode_task, encode_answer
from tidegate.cluster.inference import RoutedInference
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.metrics import WorkerMetrics
from tidegate.cluster.peers import Peers
from tidegate.cluster.router import Router
from tidegate.config import Settings
from tidegate.errors import ConfigurationError
from tidegate.observability.families import Snapshot
from tidegate.observability.logs import logging_to
from tidegate.signals import Signals
from tidegate.transports.oip.inference import Inference


class Cluster:
    """The other workers, with the interface that `tidegate.server` needs.

    Attributes:
        address: Address at which peers call this worker.
    """

    def __init__(self, worker: WorkerInfo) -> None:
        self._worker = worker
        self.address = worker.address(worker.rank)

    def join(
        self, core: Core, inference: Inference, metrics: Callable[[], Awaitable[Snapshot]]
    ) -> tuple[Core, Inference]:
        """Connect to the peers; return a core and an inference over the sessions and sequences of all workers.

        Args:
            core: This worker's own core.
            inference: Inference over that core.
            metrics: Reads this process's metrics.
        """
        self._peers = Peers(self._worker, core.settings, core.clock)
        self._metrics = WorkerMetrics(self._worker, self._peers, metrics)
        router = Router(core, self._peers)
        return router, RoutedInference(router, inference, self._peers)

    async def all(self) -> Snapshot:
        """Return the metrics of all workers as one."""
        return await self._metrics.all()

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """Return the gRPC handler that answers peers besides the services."""
        return self._metrics.handler()

    async def disconnect(self) -> None:
        """Close the channels to the peers. Requests that were passed on end with UNAVAILABLE."""
        await self._peers.close()

    async def stop(self) -> None:
        """Write this worker's counters for the last time."""
        await self._metrics.stop()


class Serve(Protocol):
    """`tidegate.server.serve`."""

    def __call__(
        self, settings: Settings, signals: Signals, announce: Callable[[dict[str, Any]], None], cluster: Cluster
    ) -> Coroutine[None, None, bool]: ...


def main(run: Callable[[Callable[[Serve], Coroutine[None, None, bool]]], bool]) -> None:
    """Serve until a signal comes, or until the supervisor is gone.

    Args:
        run: Calls its argument with the serve function, in an event loop; it imports the server only then.
    """
    # As in `tidegate serve`: no garbage collection while modules load.
    gc.disable()
    with socket.socket(fileno=int(sys.argv[1])) as line:
        with line.makefile("rb") as reader:
            sent = reader.readline()
        if not sent:
            return  # the supervisor is gone already
        task = decode_task(sent)
        # The supervisor reads standard error and logs it line by line, even the stack of a crash.
        faulthandler.enable()
        with logging_to(task.settings.log_level, task.settings.log_format):
            try:
                has_ended = run(lambda serve: _serve(serve, task, line))
            except ConfigurationError as error:
                line.sendall(encode_answer(StartRefusal(error.message)))
                raise SystemExit(2) from None
    if not has_ended:
        os._exit(0)


async def _serve(serve: Serve, task: Task, line: socket.socket) -> bool:
    signals, loop = Signals(), asyncio.get_running_loop()

    def end() -> None:
        # Nothing more is sent on the line, so it has closed. Without a supervisor there is no drain.
        loop.remove_reader(line)
        signals.end()
        signals.end()

    loop.add_reader(line, end)
    return await serve(
        task.settings, signals, lambda facts: line.sendall(encode_answer(WorkerReady(facts))), Cluster(task.worker)
    )
