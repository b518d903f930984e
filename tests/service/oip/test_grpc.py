"""What is gRPC's own: contents, streams, calls that are not served."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from tests.service.oip.ways import Tensor, message, read_message
from tidegate.limits import MAX_INFERENCES_IN_FLIGHT
from tidegate.oip import service_pb2
from tidegate.service import Service
from tidegate.transports.oip.inference import Inference
from tidegate.wire.errors import decode_status

if TYPE_CHECKING:
    from tidegate.oip.service_pb2_grpc import GRPCInferenceServiceAsyncStub as Stub

VALUES = np.zeros((1, 2, 2), np.float32)


def request(**flags: Any) -> service_pb2.ModelInferRequest:
    return message("tiny-stream", [Tensor("values", VALUES)], **flags)


async def refused(stub: Stub, asked: service_pb2.ModelInferRequest) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        await stub.ModelInfer(asked)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return decode_status(caught.value).message


async def test_missing_values_are_named(stub: Stub) -> None:
    asked = request()
    del asked.raw_input_contents[:]
    assert await refused(stub, asked) == "tensor 'values' has no values: set raw_input_contents or contents"


async def test_raw_and_typed_values_exclude_each_other(stub: Stub) -> None:
    asked = request()
    asked.inputs[0].contents.fp32_contents.extend([0] * 4)
    assert await refused(stub, asked) == "tensor 'values' has both raw and typed values"


async def test_every_input_has_one_raw_value(stub: Stub) -> None:
    asked = request()
    asked.raw_input_contents.append(b"")
    assert await refused(stub, asked) == "1 inputs, and 2 raw_input_contents: each input has one"


async def test_typed_values_are_in_their_datatype_s_field(stub: Stub) -> None:
    asked = request(is_typed=True)
    asked.inputs[0].contents.int64_contents.append(1)
    assert "the values of FP32 are in fp32_contents, not in int64_contents, fp32_contents" in await refused(stub, asked)


async def test_typed_values_are_as_many_as_the_shape_says(stub: Stub) -> None:
    asked = request(is_typed=True)
    asked.inputs[0].contents.fp32_contents.append(1)
    assert await refused(stub, asked) == "tensor 'values': shape [1, 2, 2] has 4 values, not 5"


async def test_half_precision_has_no_typed_values(stub: Stub) -> None:
    asked = request(is_typed=True)
    asked.inputs[0].datatype = "FP16"
    assert "FP16 has no typed contents" in await refused(stub, asked)


async def test_an_id_from_two_to_the_63_arrives_negative_and_is_the_same(stub: Stub) -> None:
    first, second = request(), request()
    first.parameters["sequence_id"].int64_param = -1
    first.parameters["sequence_start"].bool_param = True
    second.parameters["sequence_id"].uint64_param = 2**64 - 1
    second.parameters["priority"].uint64_param = 1
    await stub.ModelInfer(first)
    await stub.ModelInfer(second)


async def test_a_stream_answers_in_order_and_survives_an_error(stub: Stub) -> None:
    asked = []
    for index in range(8):
        each = request(id=f"r{index}")
        each.parameters["sequence_id"].int64_param = 7
        each.parameters["sequence_start"].bool_param = index == 0
        if index == 3:
            each.inputs[0].name = "wrong"
        asked.append(each)
    replies = [reply async for reply in stub.ModelStreamInfer(iter(asked))]
    assert [reply.infer_response.id for reply in replies] == [f"r{index}" for index in range(8)]
    assert [bool(reply.error_message) for reply in replies] == [index == 3 for index in range(8)]
    assert replies[3].infer_response.model_name == "tiny-stream"
    read_message(replies[7].infer_response)


async def test_pipelined_requests_of_a_sequence_are_applied_in_order(stub: Stub) -> None:
    def steps(first: float, *, is_chunked: bool) -> list[service_pb2.ModelInferRequest]:
        values = first + np.arange(20, dtype=np.float32).reshape(1, 10, 2) / 10
        pieces = np.split(values, 10, axis=1) if is_chunked else [values]
        asked = []
        for index, piece in enumerate(pieces):
            each = message("tiny-stream", [Tensor("values", piece)])
            each.parameters["sequence_id"].string_param = "s"
            each.parameters["sequence_start"].bool_param = index == 0
            each.parameters["sequence_end"].bool_param = index == len(pieces) - 1
            asked.append(each)
        return asked

    # Two sequences of the same id, one behind the other, all in flight at once: then each in one piece.
    asked = steps(0, is_chunked=True) + steps(1, is_chunked=True)
    replies = [reply async for reply in stub.ModelStreamInfer(iter(asked))]
    assert {reply.error_message for reply in replies} == {""}
    scores = np.concatenate([read_message(reply.infer_response)["score"] for reply in replies], axis=1)
    wholes = [await stub.ModelInfer(steps(first, is_chunked=False)[0]) for first in (0, 1)]
    wanted = np.concatenate([read_message(whole)["score"] for whole in wholes], axis=1)
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)


async def test_a_stream_takes_more_than_its_line_holds(stub: Stub) -> None:
    asked = [request(id=str(index)) for index in range(MAX_INFERENCES_IN_FLIGHT + 20)]
    ids = [reply.infer_response.id async for reply in stub.ModelStreamInfer(iter(asked))]
    assert ids == [each.id for each in asked]


async def test_calls_that_are_cancelled_leave_nothing_behind(
    stub: Stub, inference: Inference, service: Service
) -> None:
    asked = request()
    asked.parameters["sequence_id"].int64_param = 1
    asked.parameters["sequence_start"].bool_param = True
    call = stub.ModelInfer(asked)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    asked.parameters["sequence_end"].bool_param = True
    await stub.ModelInfer(asked)
    await service.drain()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_a_decompression_bomb_is_refused(stub: Stub, method: str) -> None:
    asked = request()
    asked.raw_input_contents[0] = bytes(32 << 20)
    call: Any = getattr(stub, method)
    is_stream = method == "ModelStreamInfer"
    asking = call(iter([asked]) if is_stream else asked, compression=grpc.Compression.Gzip)
    with pytest.raises(grpc.RpcError) as caught:
        await (asking.read() if is_stream else asking)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


UNSUPPORTED = [
    ("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest()),
    ("SystemSharedMemoryRegister", service_pb2.SystemSharedMemoryRegisterRequest()),
    ("SystemSharedMemoryUnregister", service_pb2.SystemSharedMemoryUnregisterRequest()),
    ("CudaSharedMemoryStatus", service_pb2.CudaSharedMemoryStatusRequest()),
    ("CudaSharedMemoryRegister", service_pb2.CudaSharedMemoryRegisterRequest()),
    ("CudaSharedMemoryUnregister", service_pb2.CudaSharedMemoryUnregisterRequest()),
    ("TraceSetting", service_pb2.TraceSettingRequest()),
    ("LogSettings", service_pb2.LogSettingsRequest()),
]


@pytest.mark.parametrize(("method", "asked"), UNSUPPORTED, ids=[name for name, _ in UNSUPPORTED])
async def test_what_is_not_served_is_unimplemented(stub: Stub, method: str, asked: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await getattr(stub, method)(asked)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "not supported by this server" in str(caught.value.details())
