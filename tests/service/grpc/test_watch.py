"""What is counted of calls over gRPC, and of the messages of streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc.aio import EOF  # type: ignore[attr-defined]

from tests.service.fake_core import FakeCore
from tests.service.grpc_server import GrpcServer
from tidegate.clock import Clock
from tidegate.errors import OverloadedError
from tidegate.observability.requests import RequestMetrics
from tidegate.v1 import (
    models_pb2,
    models_pb2_grpc,
    predictor_pb2,
    predictor_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)


@pytest.fixture
def requests() -> RequestMetrics:
    return RequestMetrics(Clock())


@pytest.fixture
async def channel(service: FakeCore, requests: RequestMetrics) -> AsyncIterator[aio.Channel]:
    server = GrpcServer(service, requests=requests)
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    await server.stop()


def counted(requests: RequestMetrics) -> dict[tuple[str, str], dict[str, int]]:
    found = {}
    for each in requests.snapshots():
        assert each.seconds.num_values == sum(each.outcomes.values())
        found[each.interface, each.method] = {outcome: count for outcome, count in each.outcomes.items() if count}
    return found


async def test_calls_are_counted_by_method_and_outcome(
    channel: aio.Channel, service: FakeCore, requests: RequestMetrics
) -> None:
    service.add_sessions("s")
    sessions, models = sessions_pb2_grpc.SessionsStub(channel), models_pb2_grpc.ModelsStub(channel)
    await sessions.Step(sessions_pb2.StepRequest(session="s", text="x"))
    await sessions.Get(sessions_pb2.GetSessionRequest(session="s"))
    await models.Get(models_pb2.GetModelRequest(model="echo"))
    await models.List(models_pb2.ListModelsRequest())
    await models.Reload(models_pb2.ReloadRequest())
    service.failures["s"] = [OverloadedError("full"), ZeroDivisionError("ours")]
    for _ in range(2):
        with pytest.raises(grpc.RpcError):
            await sessions.Get(sessions_pb2.GetSessionRequest(session="s"))
    assert counted(requests) == {
        ("grpc", "Step"): {"ok": 1},
        ("grpc", "Get"): {"ok": 1, "resource_exhausted": 1, "internal": 1},
        ("grpc", "GetModel"): {"ok": 1},
        ("grpc", "ListModels"): {"ok": 1},
        ("grpc", "ReloadModels"): {"ok": 1},
    }


async def test_a_call_whose_client_leaves_is_cancelled(
    channel: aio.Channel, service: FakeCore, requests: RequestMetrics
) -> None:
    service.add_sessions("s")
    service.is_holding = True
    call = sessions_pb2_grpc.SessionsStub(channel).Step(sessions_pb2.StepRequest(session="s", text="x"))
    await service.submitted.get()
    call.cancel()
    await service.cancelled.get()
    # The call's own task ends right after the step's.
    await sessions_pb2_grpc.SessionsStub(channel).Get(sessions_pb2.GetSessionRequest(session="s"))
    assert counted(requests)["grpc", "Step"] == {"cancelled": 1}


async def test_each_message_of_a_stream_is_a_request_and_the_stream_is_none(
    channel: aio.Channel, service: FakeCore, requests: RequestMetrics
) -> None:
    service.add_sessions("s", "t")
    service.late_failures["t"] = [OverloadedError("full")]
    stream: Any = predictor_pb2_grpc.PredictorStub(channel).Stream()  # type: ignore[call-arg]
    messages = [
        predictor_pb2.StreamRequest(step=sessions_pb2.StepRequest(session="s", text="x")),
        predictor_pb2.StreamRequest(step=sessions_pb2.StepRequest(session="t", text="x")),
        predictor_pb2.StreamRequest(attach=predictor_pb2.Attach(sessions=["s", "t"])),
        predictor_pb2.StreamRequest(columns=predictor_pb2.Columns(lanes=[0, 9], tokens=[1, 2])),
        predictor_pb2.StreamRequest(),
    ]
    for message in messages:
        await stream.write(message)
        await stream.read()
    await stream.done_writing()
    assert await stream.read() is EOF
    assert counted(requests) == {
        ("grpc_stream", "Step"): {"ok": 1, "resource_exhausted": 1},
        ("grpc_stream", "Attach"): {"ok": 1},
        ("grpc_stream", "Columns"): {"invalid_argument": 1},
        ("grpc_stream", "unknown"): {"invalid_argument": 1},
    }


async def test_a_message_of_lanes_fails_with_all_of_them_and_each_that_fails_is_counted(
    channel: aio.Channel, service: FakeCore, requests: RequestMetrics
) -> None:
    service.add_sessions("s", "t")
    service.late_failures["s"] = [OverloadedError("full")]
    service.late_failures["t"] = [OverloadedError("full"), OverloadedError("full")]
    stream: Any = predictor_pb2_grpc.PredictorStub(channel).Stream()  # type: ignore[call-arg]
    await stream.write(predictor_pb2.StreamRequest(attach=predictor_pb2.Attach(sessions=["s", "t"])))
    await stream.read()
    for _ in range(3):
        await stream.write(predictor_pb2.StreamRequest(columns=predictor_pb2.Columns(lanes=[0, 1], tokens=[1, 2])))
        await stream.read()
    await stream.done_writing()
    assert await stream.read() is EOF
    assert counted(requests)["grpc_stream", "Columns"] == {"ok": 2, "resource_exhausted": 1}
    assert requests.failed_lanes == {"resource_exhausted": 3}


async def test_messages_in_flight_are_cancelled_with_their_stream(
    channel: aio.Channel, service: FakeCore, requests: RequestMetrics
) -> None:
    service.add_sessions("s")
    service.is_holding = True
    stream: Any = predictor_pb2_grpc.PredictorStub(channel).Stream()  # type: ignore[call-arg]
    for _ in range(3):
        await stream.write(predictor_pb2.StreamRequest(step=sessions_pb2.StepRequest(session="s", text="x")))
        await service.submitted.get()
    stream.cancel()
    for _ in range(3):
        await service.cancelled.get()
    assert counted(requests)["grpc_stream", "Step"] == {"cancelled": 3}


async def test_generations_are_counted(channel: aio.Channel, requests: RequestMetrics) -> None:
    request = predictor_pb2.GenerateRequest(model="echo", text="x", max_tokens=2)
    async for _ in predictor_pb2_grpc.PredictorStub(channel).Generate(request):
        pass
    assert counted(requests) == {("grpc", "Generate"): {"ok": 1}}
