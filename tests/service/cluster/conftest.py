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
from tidegate.cluster.routing import Router
from tidegate.cluster.seat import Seat


class Pair(NamedTuple):
    """``near`` is asked; ``far`` holds what is not near's. ``face`` is near's core for all sessions."""

    face: Core
    near: FakeCore
    far: FakeCore
    seat: Seat

    def id_of(self, number: int) -> str:
        """An id such as worker ``number`` makes."""
        return f"e~{self.seat.replica}-{number}~x"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    near, far = FakeCore(), FakeCore()
    async with AsyncExitStack() as stack:
        # Not pytest's folder: a Unix socket's path has at most 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        seats = [Seat("test", number, 2, folder) for number in range(2)]
        for seat, service in zip(seats, (near, far), strict=True):
            server = GrpcServer(service, seat.address(seat.number))
            await server.start()
            stack.push_async_callback(server.stop)
        routed = Router(near, seats[0])
        stack.push_async_callback(routed.disconnect)
        yield Pair(routed, near, far, seats[0])
