"""Two workers of one server in one process: fake cores, each behind its routed face and its socket."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.service.grpc.fake import FakeService
from tests.service.grpc_server import GrpcServer
from tidegate.cluster.routing import RoutedService
from tidegate.cluster.seat import Seat

if TYPE_CHECKING:
    from tidegate.service import Service


class Pair(NamedTuple):
    """``near`` is asked; ``far`` holds what is not near's. ``face`` is near's core for all sessions."""

    face: Service
    near: FakeService
    far: FakeService
    seat: Seat

    def id_of(self, number: int) -> str:
        """An id such as worker ``number`` makes."""
        return f"e~{self.seat.replica}-{number}~x"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    near, far = FakeService(), FakeService()
    async with AsyncExitStack() as stack:
        # Not pytest's folder: a Unix socket's path has at most 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        seats = [Seat("test", number, 2, folder) for number in range(2)]
        for seat, service in zip(seats, (near, far), strict=True):
            server = GrpcServer(service.as_service(), seat.address(seat.number))
            await server.start()
            stack.push_async_callback(server.stop)
        routed = RoutedService(near.as_service(), seats[0])
        stack.push_async_callback(routed.disconnect)
        yield Pair(routed.as_service(), near, far, seats[0])
