"""A running gRPC server over a fake core, and stubs of a stock client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

import pytest
from grpc import aio

from tests.service.fake_core import FakeCore
from tests.service.grpc_server import GrpcServer
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
async def service() -> FakeCore:
    return FakeCore()


@pytest.fixture
async def server(service: FakeCore) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(service)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture
async def stubs(channel: aio.Channel) -> Stubs:
    return Stubs(
        models_pb2_grpc.ModelsStub(channel),
        predictor_pb2_grpc.PredictorStub(channel),
        sessions_pb2_grpc.SessionsStub(channel),
    )
