"""A gRPC server over a fake core, and its address."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.service.grpc.fake import FakeService
from tests.service.grpc_server import GrpcServer


@pytest.fixture
async def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def address(service: FakeService) -> AsyncIterator[str]:
    server = GrpcServer(service.as_service(), "127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{server.port}"
    await server.stop()
