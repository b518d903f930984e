"""Settings over the open protocol: inputs that a request may leave out, and whose value holds for it alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from tests.service.oip.ways import Refusal, Tensor, Way
from tests.service.serving import change_bundle
from tests.service.settings import by_hand, write_bundle_with_settings
from tidegate.bundle import Meaning
from tidegate.oip import service_pb2, service_pb2_grpc

if TYPE_CHECKING:
    Stub = service_pb2_grpc.GRPCInferenceServiceAsyncStub


X = np.array([[[9, -9], [1, 1]], [[2, 2], [3, 3]]], np.float32)


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    path = write_bundle_with_settings(tmp_path / "bundles")
    meanings = {"limit": Meaning(unit="dB"), "y": Meaning(description="the speech")}
    change_bundle(path, "2", sample_rate=16000.0, frame_length=2, meanings=meanings)
    return tmp_path / "bundles"


async def test_the_configuration_says_what_the_bundle_says(http: httpx.AsyncClient, stub: Stub) -> None:
    told = (await http.get("/v2/models/tuned/config")).json()
    said = {"sample_rate": "16000", "frame_length": "2", "unit.limit": "dB", "description.y": "the speech"}
    assert told["parameters"] == {key: {"string_value": text} for key, text in said.items()}
    config = (await stub.ModelConfig(service_pb2.ModelConfigRequest(name="tuned"))).config
    assert {key: each.string_value for key, each in config.parameters.items()} == said
    assert [each.name for each in config.input if each.optional] == ["limit", "speaker", "language"]
    first = (await http.get("/v2/models/tuned/versions/1/config")).json()
    assert "parameters" not in first


async def test_a_request_gives_each_row_its_own_or_all_rows_one(way: Way) -> None:
    reply = await way.infer("tuned", [Tensor("x", X), Tensor("limit", np.array([[3], [4]], np.float32))])
    zero = np.zeros(2, np.float32)
    for row, limit in enumerate((3.0, 4.0)):
        np.testing.assert_array_equal(reply["y"][row], by_hand(X[row], zero, limit=limit)[0])
    speaker, language = np.array([[2, 0]], np.float32), np.array([5], np.int64)
    reply = await way.infer("tuned", [Tensor("speaker", speaker), Tensor("x", X), Tensor("language", language)])
    for row in range(2):
        np.testing.assert_array_equal(reply["y"][row], by_hand(X[row], zero, speaker=(2, 0), language=5)[0])


async def test_a_sequence_keeps_a_value_for_one_request(way: Way) -> None:
    state, expected = np.zeros(2, np.float32), []
    requests: list[dict[str, Any]] = [{"limit": 3.0}, {}, {"language": 2}]
    for step, values in enumerate(requests):
        told, state = by_hand(X[0][:1] * (step + 1), state, **values)
        expected.append(told)
    for step, values in enumerate(requests):
        given = [
            Tensor(name, np.array([[value]], np.int64 if name == "language" else np.float32))
            for name, value in values.items()
        ]
        x = Tensor("x", X[:1, :1] * (step + 1))
        reply = await way.infer("tuned", [x, *given], sequence_id=7, sequence_start=not step, sequence_end=step == 2)
        np.testing.assert_array_equal(reply["y"][0], expected[step])


async def test_what_does_not_fit_is_refused(way: Way) -> None:
    with pytest.raises(Refusal) as caught:
        await way.infer("tuned", [Tensor("x", X), Tensor("limt", np.zeros((1, 1), np.float32))])
    assert caught.value.reason == "UNKNOWN_TENSOR"
    assert "did you mean 'limit'" in str(caught.value)
