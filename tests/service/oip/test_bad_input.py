"""Each rule about what a request may hold, by one way in; and that each way in tells a refusal of each layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.service.oip.ways import Refusal, Tensor, Way

GOOD = np.zeros((1, 2, 2), np.float32)
TOKENS = np.zeros((1, 2), np.int64)


def values(array: Any = GOOD, **told: Any) -> Tensor:
    return Tensor(told.pop("name", "values"), array, **told)


INPUTS = {
    "wrong datatype": ([values(GOOD.astype(np.int64))], "input 'values' is FP32, not INT64", "WRONG_DATATYPE"),
    "unknown datatype": ([values(datatype="FP31")], "datatype 'FP31' is none of those", "WRONG_DATATYPE"),
    "strings": ([values(datatype="BYTES")], "datatype 'BYTES' is none of those", "WRONG_DATATYPE"),
    "too few axes": ([values(GOOD[0])], r"has the shape \[-1, -1, 2\] .* which \[2, 2\] is not", "WRONG_SHAPE"),
    "wrong width": ([values(np.zeros((1, 2, 3), np.float32))], r"which \[1, 2, 3\] is not", "WRONG_SHAPE"),
    "no steps": ([values(np.zeros((1, 0, 2), np.float32))], "is empty", "EMPTY_SEQUENCE"),
    "no rows": ([values(np.zeros((0, 1, 2), np.float32))], "is empty", "EMPTY_SEQUENCE"),
    "negative size": ([values(shape=[1, -2, 2])], "sizes of at least 0", "WRONG_SHAPE"),
    "huge shape": ([values(shape=[2**40, 2**10, 2])], "has", "WRONG_SIZE"),
    "many axes": ([values(shape=[1] * 9)], "at most 8 sizes", "WRONG_SHAPE"),
    "empty and huge": (
        [values(np.zeros(0, np.float32), shape=[0, 2**62, 2**62])],
        "no tensors as large",
        "WRONG_SHAPE",
    ),
    "shape and values differ": ([values(shape=[1, 3, 2])], "has", "WRONG_SIZE"),
    "unknown name": ([values(name="other")], "unknown input 'other': the model has values", "UNKNOWN_TENSOR"),
    "a state": (
        [values(), values(np.zeros((2, 1, 16), np.float32), name="h_in")],
        "unknown input 'h_in'",
        "UNKNOWN_TENSOR",
    ),
    "no inputs": ([], "input 'values' is missing", "MISSING_TENSOR"),
    "twice": ([values(), values()], "input 'values' is there twice", "DUPLICATE_TENSOR"),
    "not finite": (
        [values(np.full((1, 1, 2), np.inf, np.float32))],
        "finite",
        "NOT_FINITE",
    ),
    "too many rows": ([values(np.zeros((33, 1, 2), np.float32))], "at most 32 rows, not 33", "BATCH_TOO_LARGE"),
    "shared memory": ([values(shared_memory_region="r")], "shared memory is not supported", "NOT_SUPPORTED"),
    "unknown tensor parameter": ([values(frob=1)], "unknown parameter 'frob'", "UNKNOWN_PARAMETER"),
}


@pytest.mark.parametrize("case", INPUTS)
async def test_a_wrong_input_is_named(raw: Way, case: str) -> None:
    inputs, wanted, reason = INPUTS[case]
    with pytest.raises(Refusal, match=wanted) as caught:
        await raw.infer("tiny-stream", inputs, id="x")
    assert caught.value.reason == reason


# One that the transport's own reader finds, and one that the model's signature does; values that are not finite have no
# form in JSON, and are told as that.
@pytest.mark.parametrize("case", ["shape and values differ", "shared memory", "unknown name", "not finite"])
async def test_every_way_in_names_a_wrong_input(way: Way, case: str) -> None:
    inputs, wanted, reason = INPUTS[case]
    with pytest.raises(Refusal, match=wanted) as caught:
        await way.infer("tiny-stream", inputs, id="x")
    assert caught.value.reason in {reason, "INVALID_JSON"}


PARAMETERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown": ({"frobnicate": 1}, "unknown parameter 'frobnicate'", "UNKNOWN_PARAMETER"),
    "flag as text": (
        {"sequence_id": 1, "sequence_start": "true"},
        "'sequence_start' must be true or false",
        "BAD_PARAMETER",
    ),
    "flag as number": ({"sequence_id": 1, "sequence_end": 1}, "'sequence_end' must be true or false", "BAD_PARAMETER"),
    "id as flag": ({"sequence_id": True}, "'sequence_id' must be an unsigned integer .* or a string", "BAD_PARAMETER"),
    "id as fraction": ({"sequence_id": 1.5}, "'sequence_id' must be", "BAD_PARAMETER"),
    "id too long": ({"sequence_id": "x" * 1025}, "a string of at most 1024 characters", "BAD_PARAMETER"),
    "flag without id": ({"sequence_start": True}, "need a sequence_id", "NO_SEQUENCE_ID"),
    "position without id": ({"tidegate_position": 3}, "need a sequence_id", "NO_SEQUENCE_ID"),
    "negative position": ({"sequence_id": 1, "tidegate_position": -1}, "'tidegate_position' must be", "BAD_PARAMETER"),
    "timeout as text": ({"timeout": "1s"}, "'timeout' must be an unsigned integer", "BAD_PARAMETER"),
    "negative priority": ({"priority": -1}, "'priority' must be an unsigned integer", "BAD_PARAMETER"),
}


@pytest.mark.parametrize("case", PARAMETERS)
async def test_a_wrong_parameter_is_named(raw: Way, case: str) -> None:
    parameters, wanted, reason = PARAMETERS[case]
    with pytest.raises(Refusal, match=wanted) as caught:
        await raw.infer("tiny-stream", [values()], **parameters)
    assert caught.value.reason == reason


@pytest.mark.parametrize("case", ["flag as text", "id as flag", "id as fraction", "negative position"])
async def test_every_way_in_keeps_the_type_of_a_parameter(way: Way, case: str) -> None:
    parameters, wanted, reason = PARAMETERS[case]
    with pytest.raises(Refusal, match=wanted) as caught:
        await way.infer("tiny-stream", [values()], **parameters)
    assert caught.value.reason == reason


@pytest.mark.parametrize("token", [-1, 65, 2**62])
async def test_a_token_outside_the_vocabulary_is_refused_before_it_runs(raw: Way, token: int) -> None:
    with pytest.raises(Refusal, match="token ids go from 0 to 64"):
        await raw.infer("tiny", [Tensor("tokens", TOKENS + token)])


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [(["nothing"], "unknown output 'nothing'"), (["h_out"], "unknown output"), (["score"] * 2, "twice")],
)
async def test_a_wrong_output_is_named(raw: Way, outputs: list[str], wanted: str) -> None:
    with pytest.raises(Refusal, match=wanted):
        await raw.infer("tiny-stream", [values()], outputs=outputs)


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [("nobody", "", "UNKNOWN_MODEL"), ("tiny", "9", "UNKNOWN_VERSION"), ("tiny", "x", "UNKNOWN_VERSION")],
)
async def test_an_unknown_model_or_version_is_not_found(raw: Way, model: str, version: str, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        await raw.infer(model, [values()], version=version)
    assert caught.value.reason == reason


async def test_every_way_in_has_a_code_for_an_unknown_version(way: Way) -> None:
    with pytest.raises(Refusal) as caught:
        await way.infer("tiny", [values()], version="9")
    assert caught.value.reason == "UNKNOWN_VERSION"
    assert caught.value.code in {"404", "NOT_FOUND", "STREAM"}


async def test_a_reply_that_would_be_too_large_is_refused_before_it_runs(way: Way) -> None:
    with pytest.raises(Refusal, match="the reply would have") as caught:
        await way.infer("tiny", [Tensor("tokens", np.zeros((8, 4000), np.int64))])
    assert caught.value.reason == "REPLY_TOO_LARGE"


async def test_a_refused_start_leaves_the_running_sequence_as_it_is(way: Way) -> None:
    await way.infer("tiny-stream", [values()], sequence_id=4, sequence_start=True, tidegate_position=0)
    with pytest.raises(Refusal):
        await way.infer("tiny-stream", [values(name="other")], sequence_id=4, sequence_start=True)
    reply = await way.infer("tiny-stream", [values()], sequence_id=4, tidegate_position=2)
    assert reply.document["parameters"] == {"tidegate_position": 4}
