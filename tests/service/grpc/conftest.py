"""A running gRPC server over a fake core, and stubs of a stock client: once at each of its two ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

import pytest
from grpc import aio

from tests.service.grpc.fake import FakeService
from tidegate.transports.grpc.server import GrpcServer, create_server
from tidegate.v1 import models_pb2_grpc, predictor_pb2_grpc, sessions_pb2_grpc

if TYPE_CHECKING:
    from tidegate.v1.models_pb2_grpc import ModelsAsyncStub
    from tidegate.v1.predictor_pb2_grpc import PredictorAsyncStub
    from tidegate.v1.sessions_pb2_grpc import SessionsAsyncStub


class Stubs(NamedTuple):
    models: ModelsAsyncStub
    predictor: PredictorAsyncStub
    sessions: SessionsAsyncStub


@pytest.fixture
async def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def server(service: FakeService) -> AsyncIterator[GrpcServer]:
    server = create_server(service.as_service(), "127.0.0.1:0", "127.0.0.1:0")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(params=["grpcio", "native"])
async def channel(server: GrpcServer, request: pytest.FixtureRequest) -> AsyncIterator[aio.Channel]:
    port = server.port if request.param == "grpcio" else server.native_port
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@pytest.fixture
async def stubs(channel: aio.Channel) -> Stubs:
    return Stubs(
        models_pb2_grpc.ModelsStub(channel),
        predictor_pb2_grpc.PredictorStub(channel),
        sessions_pb2_grpc.SessionsStub(channel),
    )
