"""The two ports of one server: one core behind both, and what can go wrong with the second."""

from __future__ import annotations

import sys

import grpc
import pytest
from grpc import aio

from tests.service.grpc.conftest import Stubs
from tests.service.grpc.fake import FakeService
from tidegate.errors import ConfigurationError
from tidegate.transports.grpc.server import GrpcServer, create_server
from tidegate.v1 import sessions_pb2, sessions_pb2_grpc


async def test_a_session_of_one_port_is_stepped_on_the_other(server: GrpcServer) -> None:
    async with (
        aio.insecure_channel(f"127.0.0.1:{server.port}") as grpcio,
        aio.insecure_channel(f"127.0.0.1:{server.native_port}") as native,
    ):
        opened = await sessions_pb2_grpc.SessionsStub(grpcio).Open(sessions_pb2.OpenRequest(model="echo"))
        step = sessions_pb2.StepRequest(session=opened.id, text="x")
        assert (await sessions_pb2_grpc.SessionsStub(native).Step(step)).position == 1
        assert (await sessions_pb2_grpc.SessionsStub(grpcio).Step(step)).position == 2


async def test_a_call_whose_time_runs_out_is_cancelled_in_the_core(stubs: Stubs, service: FakeService) -> None:
    service.add_sessions("a")
    service.is_holding = True
    with pytest.raises(aio.AioRpcError) as caught:
        await stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text="x"), timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert await service.cancelled.get() == "a"


async def test_without_an_address_there_is_no_native_front(service: FakeService) -> None:
    assert create_server(service.as_service(), "127.0.0.1:0").native_port is None


async def test_a_port_in_use_is_a_clear_error(server: GrpcServer, service: FakeService) -> None:
    address = f"127.0.0.1:{server.native_port}"
    with pytest.raises(ConfigurationError, match=f"--native-grpc: {address}: address already in use"):
        create_server(service.as_service(), "127.0.0.1:0", address)


async def test_a_front_that_is_not_installed_is_a_clear_error(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pygrpc_native.aio", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tidegate\[front\]'"):
        create_server(service.as_service(), "127.0.0.1:0", "127.0.0.1:0")
