"""What is counted of the Open Inference Protocol: inference by every way in, not probes."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest
from grpc import aio
from starlette.applications import Starlette

from tests.service.grpc_server import GrpcServer
from tidegate.observability.requests import RequestMetrics
from tidegate.oip import service_pb2, service_pb2_grpc
from tidegate.service import Service
from tidegate.transports.http.watch import Watch
from tidegate.transports.oip.http import routes
from tidegate.transports.oip.inference import Inference

BODY = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}]}


def counted(requests: RequestMetrics) -> dict[tuple[str, str], dict[str, int]]:
    return {
        (each.interface, each.method): {outcome: count for outcome, count in each.outcomes.items() if count}
        for each in requests.snapshots()
    }


def asked(model: str) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="tokens", datatype="INT64", shape=[1, 2])
    tensor.contents.int64_contents.extend([1, 2])
    return request


async def test_over_http(inference: Inference) -> None:
    requests = RequestMetrics(inference.clock)
    app = Watch(Starlette(routes=[*routes(inference)]), requests)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post("/v2/models/tiny/infer", json=BODY)).status_code == 200
        await client.post("/v2/models/nothing/infer", json=BODY)
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
            await client.get(path)
        await client.get("/v2/models/tiny")
        await client.get("/v2/nowhere")
    assert counted(requests) == {
        ("oip_http", "ModelInfer"): {"ok": 1, "not_found": 1},
        ("oip_http", "ModelMetadata"): {"ok": 1},
        ("oip_http", "unknown"): {"not_found": 1},
    }


async def test_over_grpc(service: Service, inference: Inference) -> None:
    requests = RequestMetrics(inference.clock)
    server = GrpcServer(service, "127.0.0.1:0", inference, requests)
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await stub.ServerLive(service_pb2.ServerLiveRequest())
        await stub.ModelInfer(asked("tiny"))
        with pytest.raises(grpc.RpcError):
            await stub.ModelInfer(asked("nothing"))
        stream: Any = stub.ModelStreamInfer()  # type: ignore[call-arg]
        for model in ("tiny", "nothing", "tiny"):
            await stream.write(asked(model))
            await stream.read()
        await stream.done_writing()
    await server.stop()
    assert counted(requests) == {
        ("oip_grpc", "ModelInfer"): {"ok": 1, "not_found": 1},
        ("oip_grpc_stream", "ModelInfer"): {"ok": 2, "not_found": 1},
    }
