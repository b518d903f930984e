from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tidegate.errors import InvalidInputError
from tidegate.limits import MAX_HEAD_BYTES
from tidegate.oip import service_pb2
from tidegate.transports.oip.fast_wire import Requests, write_reply, write_stream_reply
from tidegate.transports.oip.messages import decode_request, encode_reply
from tidegate.transports.oip.requests import InferReply, InferRequest
from tidegate.transports.oip.tensors import NamedTensor


def request(values: Sequence[Any] = (7,), datatype: str = "INT64", id: str = "") -> service_pb2.ModelInferRequest:  # noqa: A002
    dtype = {"INT64": np.int64, "FP32": np.float32}[datatype]
    message = service_pb2.ModelInferRequest(model_name="m", id=id)
    message.parameters["sequence_id"].int64_param = 5
    message.inputs.add(name="x", datatype=datatype, shape=[1, len(values)])
    message.raw_input_contents.append(np.array(values, dtype).tobytes())
    return message


def meaning(found: InferRequest) -> tuple[object, ...]:
    tensors = [(name, array.dtype, array.tolist()) for name, array in found.inputs]
    return found.model, found.version, found.id, found.options, tensors, list(found.outputs)


def answered(requests: Requests, data: bytes) -> InferRequest:
    """Read a request as one that is answered then."""
    asked, seen = requests.read(data)
    if seen is not None:
        requests.remember(seen)
    return asked


def must_read(requests: Requests, data: bytes) -> None:
    wanted = meaning(decode_request(service_pb2.ModelInferRequest.FromString(data)))
    assert meaning(answered(requests, data)) == wanted
    assert meaning(answered(requests, data)) == wanted, "when it was read before"


def test_what_was_read_before_is_read_as_it_is_read_anew() -> None:
    requests = Requests()
    integers = [request(values) for values in ([7], [8], [1, 2, 3], [9])]
    for message in (*integers, request([2], "FP32"), request(id="a"), request(id="b")):
        must_read(requests, message.SerializeToString())


@pytest.mark.parametrize(
    ("name", "value"),
    [("sequence_start", True), ("sequence_end", True), ("sequence_id", 6), ("tidegate_position", 3), ("timeout", 9)],
)
def test_another_parameter_is_another_head(name: str, value: int) -> None:
    requests = Requests()
    must_read(requests, request().SerializeToString())
    message = request([8])
    parameter = message.parameters[name]
    if isinstance(value, bool):
        parameter.bool_param = value
    else:
        parameter.int64_param = value
    must_read(requests, message.SerializeToString())
    must_read(requests, request([9]).SerializeToString())


def test_values_that_do_not_stand_last_are_read_anew() -> None:
    values, rest = request(), request()
    del values.inputs[:]
    values.ClearField("parameters")
    values.ClearField("model_name")
    rest.ClearField("raw_input_contents")
    requests = Requests()
    for token in (1, 2):
        values.raw_input_contents[0] = np.int64(token).tobytes()
        must_read(requests, values.SerializeToString() + rest.SerializeToString())


def test_a_field_that_looks_like_the_values_is_none() -> None:
    requests = Requests()
    first = request().SerializeToString()
    tail = first[-10:]  # the tag, the length and eight bytes of a token
    for token in (1, 2):
        # An unknown field of bytes that ends as the message would: what it holds is nobody's value.
        data = first + b"\xfa\x3f" + bytes([10]) + tail[:2] + np.int64(token).tobytes()
        must_read(requests, data)


def test_a_request_that_is_wrong_is_wrong_each_time() -> None:
    requests = Requests()
    answered(requests, request().SerializeToString())
    wrong = request()
    wrong.inputs[0].shape[1] = 2
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="has 16 bytes, not 8"):
            requests.read(wrong.SerializeToString())


@pytest.mark.parametrize("data", [b"\x0a", b"\xff" * 20, request().SerializeToString()[:-3]])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Requests().read(data)
    assert caught.value.reason == "BAD_MESSAGE"


def test_heads_are_forgotten_when_there_are_too_many() -> None:
    requests = Requests(max_heads=2)
    for number in range(1, 8):
        message = request()
        message.parameters["sequence_id"].int64_param = number
        must_read(requests, message.SerializeToString())


def test_heads_are_remembered_if_they_are_short_and_their_requests_were_answered() -> None:
    requests = Requests()
    data = request().SerializeToString()
    _, seen = requests.read(data)
    assert seen is not None
    assert requests.num_bytes == 0, "it may be refused yet"
    requests.remember(seen)
    assert requests.num_bytes == len(data) - 8
    assert requests.read(data)[1] is None, "nothing of it is new"
    for length in (800, MAX_HEAD_BYTES):
        message = request([8])
        message.parameters["triton_note"].string_param = "x" * length
        answered(requests, message.SerializeToString())
    assert len(data) + 800 < requests.num_bytes < MAX_HEAD_BYTES + len(data)


SCORES = np.arange(84, dtype=np.float32).reshape(1, 1, 84)
REPLIES = [
    InferReply("m", "1", "", [NamedTensor("scores", SCORES), NamedTensor("surprise", SCORES[0, :, 3])]),
    InferReply("m", "1", "", [NamedTensor("scores", SCORES[:, :, ::2])]),
    InferReply("m", "1", "", [NamedTensor("flags", np.zeros((1, 0), np.bool_))]),
    InferReply("m", "1", "", [NamedTensor("long", np.zeros((1, 70_000), np.int8))]),
    InferReply("m", "1", "17", [NamedTensor("scores", SCORES)]),
    InferReply("m", "2", "", [NamedTensor("scores", SCORES)], position=300),
]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_is_written_as_its_message_is(reply: InferReply) -> None:
    wanted = encode_reply(reply)
    for _ in range(2):
        assert service_pb2.ModelInferResponse.FromString(write_reply(reply)) == wanted
        streamed = service_pb2.ModelStreamInferResponse.FromString(write_stream_reply(reply))
        assert streamed == service_pb2.ModelStreamInferResponse(infer_response=wanted)
