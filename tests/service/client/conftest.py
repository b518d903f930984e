"""A gRPC server over a fake core, and its address."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.service.fake_core import FakeCore
from tests.service.grpc_server import GrpcServer


@pytest.fixture
async def service() -> FakeCore:
    return FakeCore()


@pytest.fixture
async def address(service: FakeCore) -> AsyncIterator[str]:
    server = GrpcServer(service, "127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{server.port}"
    await server.stop()
