"""What the protocol tells of server, models and repository: the same over both transports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette

from tests.bundles import write_tiny_bundle
from tests.clock import ManualClock
from tests.service.oip.ways import HttpWay, Refusal, Tensor
from tests.service.serving import corrupt, serving
from tidegate.oip import service_pb2
from tidegate.service import Service
from tidegate.transports.oip.http import routes
from tidegate.transports.oip.inference import Inference
from tidegate.wire.errors import decode_status

if TYPE_CHECKING:
    from tidegate.oip.service_pb2_grpc import GRPCInferenceServiceAsyncStub as Stub

Json = Any


def document(message: Any) -> Json:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def plain(value: Json) -> Json:
    """JSON as protobuf writes it: 64-bit numbers are text."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return str(value) if type(value) is int else value


async def get(http: httpx.AsyncClient, path: str) -> Json:
    response = await http.get(path)
    assert response.status_code == httpx.codes.OK, response.text
    return response.json()


async def test_the_server_tells_its_extensions(http: httpx.AsyncClient, stub: Stub) -> None:
    told = await get(http, "/v2")
    assert told["name"] == "tidegate"
    wanted = {"sequence", "sequence(string_id)", "statistics", "model_configuration", "model_repository"}
    assert wanted | {"schedule_policy", "binary_tensor_data", "parameters"} == set(told["extensions"])
    assert document(await stub.ServerMetadata(service_pb2.ServerMetadataRequest())) == told


async def test_metadata_has_the_graph_s_tensors_and_no_states(http: httpx.AsyncClient, stub: Stub) -> None:
    told = await get(http, "/v2/models/tiny")
    assert told == {
        "name": "tiny",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "tokens", "datatype": "INT64", "shape": [-1, -1]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, -1, 65]},
            {"name": "surprise", "datatype": "FP32", "shape": [-1, -1]},
        ],
    }
    message = await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="tiny"))
    assert document(message) == plain(told)


async def test_the_configuration_fits_the_metadata(http: httpx.AsyncClient, stub: Stub) -> None:
    told = await get(http, "/v2/models/tiny/versions/1/config")
    assert told["max_batch_size"] == 32
    assert told["input"] == [{"name": "tokens", "data_type": "TYPE_INT64", "dims": [-1]}]
    assert [output["dims"] for output in told["output"]] == [[-1, 65], [-1]]
    assert told["sequence_batching"]["max_sequence_idle_microseconds"] == 86400 * 10**6
    assert told["model_transaction_policy"] == {"decoupled": False}
    assert told["response_cache"] == {"enable": False}
    response = await stub.ModelConfig(service_pb2.ModelConfigRequest(name="tiny", version="1"))
    config = response.config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("tiny", 32, [-1])
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert config.HasField("model_transaction_policy")


async def test_a_model_may_be_served_without_sequences(bundles: Path) -> None:
    async with serving(bundles, store="none", models={"tiny": {"sequences": False}}) as service:
        inference = Inference(service)
        assert "sequence_batching" in inference.config("tiny-stream", "")
        config = inference.config("tiny", "")
        assert "sequence_batching" not in config
        assert config["dynamic_batching"] == {}
        app = Starlette(routes=[*routes(inference)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            inputs = [Tensor("tokens", np.zeros((1, 1), np.int64))]
            with pytest.raises(Refusal) as caught:
                await HttpWay(client, "json").infer("tiny", inputs, sequence_id=1, sequence_start=True)
        assert caught.value.reason == "NO_SEQUENCES"


@pytest.mark.parametrize("path", ["", "/config", "/stats", "/ready"])
@pytest.mark.parametrize("model", ["nobody", "tiny/versions/7"])
async def test_an_unknown_model_is_not_found(http: httpx.AsyncClient, model: str, path: str) -> None:
    response = await http.get(f"/v2/models/{model}{path}")
    assert response.status_code == httpx.codes.NOT_FOUND
    assert set(response.json()) == {"error"}


async def test_health(http: httpx.AsyncClient, stub: Stub, service: Service) -> None:
    paths = ["/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/2/ready"]
    assert [(await http.get(path)).status_code for path in paths] == [200] * 4
    ready = service_pb2.ModelReadyRequest
    assert [(await stub.ModelReady(ready(name=name))).ready for name in ("tiny", "nobody")] == [True, False]
    assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live
    assert (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready
    await service.drain()
    assert [(await http.get(path)).status_code for path in paths] == [200, 503, 503, 503]
    assert not (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready


async def test_while_draining_inference_is_unavailable(http: httpx.AsyncClient, service: Service) -> None:
    await service.drain()
    cases: list[dict[str, Any]] = [{}, {"sequence_id": 1, "sequence_start": True}]
    for flags in cases:
        with pytest.raises(Refusal) as caught:
            await HttpWay(http, "json").infer("tiny", [Tensor("tokens", np.zeros((1, 1), np.int64))], **flags)
        assert (caught.value.code, caught.value.reason) == ("503", "DRAINING")


async def test_statistics_grow_with_every_request(http: httpx.AsyncClient, stub: Stub, clock: ManualClock) -> None:
    clock.pace = 0.001
    way = HttpWay(http, "json")
    before = (await get(http, "/v2/models/tiny/versions/2/stats"))["model_stats"][0]
    for _ in range(3):
        await way.infer("tiny", [Tensor("tokens", np.zeros((2, 1), np.int64))])
    with pytest.raises(Refusal):
        await way.infer("tiny", [])
    after = (await get(http, "/v2/models/tiny/versions/2/stats"))["model_stats"][0]
    assert (after["name"], after["version"]) == ("tiny", "2")
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] > before["execution_count"]
    assert after["last_inference"] > 0
    stats = after["inference_stats"]
    counts = {name: stats[name]["count"] for name in stats}
    assert counts == dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 3) | {
        "fail": 1,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    parts = sum(stats[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < parts <= stats["success"]["ns"]
    message = await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="tiny", version="2"))
    assert message.model_stats[0].inference_stats.queue.count == 3


async def test_statistics_of_all_versions_and_of_all_models(http: httpx.AsyncClient) -> None:
    def names(told: Json) -> list[tuple[str, str]]:
        return [(each["name"], each["version"]) for each in told["model_stats"]]

    tiny = [("tiny", "1"), ("tiny", "2")]
    assert names(await get(http, "/v2/models/tiny/stats")) == tiny
    assert names(await get(http, "/v2/models/stats")) == [*tiny, ("tiny-forecast", "1"), ("tiny-stream", "1")]


# ---- repository


async def index(http: httpx.AsyncClient, **asked: bool) -> list[tuple[str, str, str]]:
    response = await http.post("/v2/repository/index", json=asked)
    return [(each["name"], each["version"], each["state"]) for each in response.json()]


async def test_the_index_is_what_the_directory_holds(http: httpx.AsyncClient, stub: Stub, bundles: Path) -> None:
    ready = [("tiny", "1", "READY"), ("tiny", "2", "READY"), ("tiny-forecast", "1", "READY")]
    ready.append(("tiny-stream", "1", "READY"))
    assert await index(http) == ready
    corrupt(write_tiny_bundle(bundles, "bad"))
    response = await http.post("/v2/repository/models/bad/load")
    assert response.status_code == httpx.codes.PRECONDITION_FAILED
    assert "checksum differs" in response.json()["error"]
    assert await index(http) == [*ready, ("bad", "1", "UNAVAILABLE")]
    assert await index(http, ready=True) == ready
    message = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
    assert "checksum differs" in message.models[-1].reason


async def test_load_offers_a_new_bundle(http: httpx.AsyncClient, stub: Stub, bundles: Path) -> None:
    write_tiny_bundle(bundles, "new")
    assert (await http.post("/v2/repository/models/new/load", json={})).status_code == httpx.codes.OK
    assert (await stub.ModelReady(service_pb2.ModelReadyRequest(name="new"))).ready
    await stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="new"))


async def test_what_has_no_bundle_cannot_be_loaded(http: httpx.AsyncClient) -> None:
    response = await http.post("/v2/repository/models/nobody/load")
    assert response.status_code == httpx.codes.NOT_FOUND


async def test_a_model_cannot_be_sent_along(http: httpx.AsyncClient, stub: Stub) -> None:
    response = await http.post("/v2/repository/models/tiny/load", json={"parameters": {"config": "{}"}})
    assert response.status_code == httpx.codes.NOT_IMPLEMENTED
    asked = service_pb2.RepositoryModelLoadRequest(model_name="tiny")
    asked.parameters["file:1/model.onnx"].bytes_param = b"x"
    with pytest.raises(grpc.RpcError) as caught:
        await stub.RepositoryModelLoad(asked)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_model_is_unloaded_once_its_folder_is_gone(http: httpx.AsyncClient, stub: Stub, bundles: Path) -> None:
    asked = service_pb2.RepositoryModelUnloadRequest(model_name="tiny")
    with pytest.raises(grpc.RpcError) as caught:
        await stub.RepositoryModelUnload(asked)
    assert decode_status(caught.value).reason == "BUNDLE_PRESENT"
    shutil.rmtree(bundles / "tiny")
    for _ in range(2):
        assert (await http.post("/v2/repository/models/tiny/unload")).status_code == httpx.codes.OK
    assert not (await stub.ModelReady(service_pb2.ModelReadyRequest(name="tiny"))).ready


async def test_a_sequence_goes_on_where_its_model_is_not_offered_any_more(
    http: httpx.AsyncClient, bundles: Path
) -> None:
    way = HttpWay(http, "json")
    inputs = [Tensor("tokens", np.zeros((1, 1), np.int64))]
    await way.infer("tiny", inputs, sequence_id=1, sequence_start=True)
    shutil.rmtree(bundles / "tiny" / "2")
    await http.post("/v2/repository/models/tiny/load")
    assert (await way.infer("tiny", inputs, sequence_id=1)).document["model_version"] == "2"
    assert (await way.infer("tiny", inputs, sequence_id=2, sequence_start=True)).document["model_version"] == "1"
    await way.infer("tiny", inputs, sequence_id=1, sequence_end=True)
    with pytest.raises(Refusal):
        await way.infer("tiny", inputs, version="2")
