"""Start, health, drain and stop."""

from __future__ import annotations

import asyncio

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.service.fake_core import FakeCore
from tests.service.grpc.conftest import Stubs
from tests.service.grpc_server import GrpcServer
from tidegate.errors import ConfigurationError
from tidegate.v1 import sessions_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: aio.Channel, name: str = "") -> int:
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    return int(reply.status)


async def test_a_port_in_use_is_a_clear_error(server: GrpcServer, service: FakeCore) -> None:
    address = f"127.0.0.1:{server.port}"
    with pytest.raises(ConfigurationError, match=f"--grpc: {address}: address already in use"):
        GrpcServer(service, address)


async def test_health_follows_readiness(server: GrpcServer, service: FakeCore, channel: aio.Channel) -> None:
    assert await health(channel) == SERVING
    service.is_ready = False
    await server.tell_health()
    assert await health(channel) == NOT_SERVING


async def test_draining_says_not_serving_at_once_and_returns_when_the_last_call_is_answered(
    server: GrpcServer, service: FakeCore, channel: aio.Channel, stubs: Stubs
) -> None:
    service.add_sessions("a")
    service.is_holding = True
    call = stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text="x"))
    await service.submitted.get()
    draining = asyncio.create_task(server.drain())
    assert await health(channel, "tidegate.v1.Sessions") == NOT_SERVING
    assert not draining.done()
    service.release()
    assert (await call).position == 1
    await draining


async def test_a_watcher_of_health_hears_of_the_drain_and_does_not_delay_it(
    server: GrpcServer, channel: aio.Channel
) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    told = aiter(watch)
    assert (await anext(told)).status == SERVING
    await server.drain()
    assert (await anext(told)).status == NOT_SERVING


async def test_stopping_ends_calls_that_run(server: GrpcServer, service: FakeCore, stubs: Stubs) -> None:
    service.add_sessions("a")
    service.is_holding = True
    call = stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text="x"))
    await service.submitted.get()
    await server.stop()
    with pytest.raises(aio.AioRpcError):
        await call
    assert await service.cancelled.get() == "a"
