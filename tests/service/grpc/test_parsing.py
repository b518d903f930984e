"""Messages are parsed within bounds, and what is none is refused as the client's fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInputError, TooLargeError
from tidegate.limits import LARGE_MESSAGE_BYTES, MAX_LANES, MAX_MESSAGE_FIELDS, MAX_SEQUENCES
from tidegate.oip import service_pb2
from tidegate.protobuf import varint
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.parsing import deserializer, parse, parsed

SEQUENCES = predictor_pb2.PredictRequest.SEQUENCES_FIELD_NUMBER << 3 | 2


def prediction(num_sequences: int, *, text: str = "") -> predictor_pb2.PredictRequest:
    message = predictor_pb2.PredictRequest(model="m")
    for _ in range(num_sequences):
        message.sequences.add(text=text)
    return message


def refused(data: bytes, kind: type[predictor_pb2.PredictRequest] = predictor_pb2.PredictRequest) -> None:
    with pytest.raises(TooLargeError) as caught:
        parse(kind, data)
    assert caught.value.reason == "REQUEST_TOO_LARGE"


def test_as_many_sequences_as_a_request_may_have_are_parsed() -> None:
    for text in ("", "x" * 2000):
        message = prediction(MAX_SEQUENCES // 4 if text else MAX_SEQUENCES, text=text)
        assert parse(predictor_pb2.PredictRequest, message.SerializeToString()) == message


def test_numbers_that_are_packed_are_one_field() -> None:
    message = sessions_pb2.StepRequest(session="s", tokens=range(1000, 300_000))
    assert parse(sessions_pb2.StepRequest, message.SerializeToString()) == message


def test_too_many_fields_are_refused_before_they_are_parsed() -> None:
    refused(prediction(MAX_MESSAGE_FIELDS).SerializeToString())
    refused(bytes([SEQUENCES, 0]) * (MAX_MESSAGE_FIELDS + 1))
    one_by_one = b"\x10\x01" * (MAX_MESSAGE_FIELDS + 1)  # tokens that are not packed
    refused(bytes([SEQUENCES]) + varint(len(one_by_one)) + one_by_one)
    few = bytes([SEQUENCES]) + varint(2 * LARGE_MESSAGE_BYTES) + one_by_one[: 2 * LARGE_MESSAGE_BYTES]
    assert len(parse(predictor_pb2.PredictRequest, few).sequences[0].tokens) == LARGE_MESSAGE_BYTES


def test_an_attachment_names_all_lanes() -> None:
    message = predictor_pb2.StreamRequest(attach=predictor_pb2.Attach(sessions=["s" * 20] * MAX_LANES))
    assert parse(predictor_pb2.StreamRequest, message.SerializeToString()) == message
    message.attach.sessions.extend(["s"] * MAX_MESSAGE_FIELDS)
    with pytest.raises(TooLargeError):
        parse(predictor_pb2.StreamRequest, message.SerializeToString())


def test_a_map_counts_where_small_messages_do() -> None:
    message = service_pb2.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x" * LARGE_MESSAGE_BYTES)
    for index in range(1000):
        tensor.parameters[f"{index}"].bool_param = True
    assert parse(service_pb2.ModelInferRequest, message.SerializeToString(), 1010, 64) == message
    with pytest.raises(TooLargeError):
        parse(service_pb2.ModelInferRequest, message.SerializeToString(), 1000, 64)


@given(st.binary(max_size=30), st.integers(0, 200))
def test_what_is_no_message_is_refused_whatever_is_counted(tail: bytes, num_sequences: int) -> None:
    data = prediction(num_sequences, text="x" * 100).SerializeToString() + tail
    try:
        expected = predictor_pb2.PredictRequest.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own
        with pytest.raises(InvalidInputError) as caught:
            parse(predictor_pb2.PredictRequest, data)
        assert caught.value.reason == "BAD_MESSAGE"
    else:
        assert parse(predictor_pb2.PredictRequest, data) == expected


def test_a_server_is_told_when_it_asks() -> None:
    deserialize = deserializer(predictor_pb2.PredictRequest)
    assert parsed(deserialize(prediction(1).SerializeToString())) == prediction(1)
    with pytest.raises(InvalidInputError):
        parsed(deserialize(b"\xff"))
