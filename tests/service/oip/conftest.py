"""The protocol over a real service with tiny bundles, at every way in: HTTP and gRPC, binary and not, and a stream."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from grpc import aio
from starlette.applications import Starlette

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tests.clock import ManualClock
from tests.service.fake_core import FakeCore
from tests.service.grpc_server import GrpcServer
from tests.service.oip.ways import GrpcWay, HttpWay, Way
from tests.service.serving import serving
from tidegate.oip import service_pb2_grpc
from tidegate.service import Service
from tidegate.transports.oip.http import routes
from tidegate.transports.oip.inference import Inference
from tidegate.transports.oip.sequences import Sequences


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    write_tiny_bundle(root)
    write_tiny_bundle(root, version="2", cell="gru")
    write_tiny_forecast_bundle(root)
    write_tiny_stream_bundle(root)
    return root


@pytest.fixture
def bundles(written: Path, tmp_path: Path) -> Path:
    """A directory that a test may change."""
    return shutil.copytree(written, tmp_path / "bundles")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def service(bundles: Path, clock: ManualClock) -> AsyncIterator[Service]:
    async with serving(bundles, clock, store="none", max_rows=32) as service:
        yield service


@pytest.fixture
async def inference(service: Service) -> AsyncIterator[Inference]:
    inference = Inference(service)
    yield inference
    await inference.stop()


@pytest.fixture
async def http(inference: Inference) -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[*routes(inference)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
async def stub(service: Service, inference: Inference) -> AsyncIterator[service_pb2_grpc.GRPCInferenceServiceAsyncStub]:
    server = GrpcServer(service, "127.0.0.1:0", inference)
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
    await server.stop()


@pytest.fixture(params=["http-json", "http-binary", "grpc-raw", "grpc-typed", "grpc-stream"])
def way(
    request: pytest.FixtureRequest, http: httpx.AsyncClient, stub: service_pb2_grpc.GRPCInferenceServiceAsyncStub
) -> Way:
    transport, _, form = request.param.partition("-")
    return HttpWay(http, form) if transport == "http" else GrpcWay(stub, form)


@pytest.fixture
def raw(stub: service_pb2_grpc.GRPCInferenceServiceAsyncStub) -> Way:
    """One way in, for rules that are the same by all."""
    return GrpcWay(stub, "raw")


@pytest.fixture
def core() -> FakeCore:
    """A core whose sessions are counters."""
    return FakeCore()


@pytest.fixture
def sequences(core: FakeCore) -> Sequences:
    return Sequences(core)
