"""Two workers of one server in one process: fake cores, each behind its routed face and its socket."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.service.fake_core import FakeCore
from tests.service.grpc_server import GrpcServer
from tidegate.api import Core
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.peers import Peers
from tidegate.cluster.router import Router


class Pair(NamedTuple):
    """``near`` is asked; ``far`` holds what is not near's. ``face`` is near's core for all sessions."""

    face: Core
    near: FakeCore
    far: FakeCore
    worker: WorkerInfo

    def id_of(self, number: int) -> str:
        """An id such as worker ``number`` makes."""
        return f"e~{self.worker.replica}-{number}~x"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    near, far = FakeCore(), FakeCore()
    async with AsyncExitStack() as stack:
        # Not pytest's folder: a Unix socket's path has at most 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [WorkerInfo("test", number, 2, folder) for number in range(2)]
        for worker, service in zip(workers, (near, far), strict=True):
            server = GrpcServer(service, worker.address(worker.rank))
            await server.start()
            stack.push_async_callback(server.stop)
        peers = Peers(workers[0], near.settings, near.clock)
        routed = Router(near, peers)
        stack.push_async_callback(peers.close)
        yield Pair(routed, near, far, workers[0])
