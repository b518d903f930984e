"""Every bound, reached over an interface that it is for; and the page that shows them all."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from grpc import RpcError, aio
from grpc_status import rpc_status

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle
from tests.service.grpc_server import GrpcServer
from tests.service.serving import serving
from tidegate import limits
from tidegate.config import FLAGS, flag
from tidegate.oip import service_pb2, service_pb2_grpc
from tidegate.service import Service
from tidegate.transports.http.app import create_app
from tidegate.transports.oip.http import routes
from tidegate.transports.oip.inference import Inference
from tidegate.v1 import predictor_pb2, predictor_pb2_grpc, sessions_pb2, sessions_pb2_grpc, types_pb2
from tidegate.wire.errors import decode_status

Json = Any

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"


class Front(NamedTuple):
    """A service, and clients of every interface of it."""

    service: Service
    http: httpx.AsyncClient
    predictor: predictor_pb2_grpc.PredictorAsyncStub
    sessions: sessions_pb2_grpc.SessionsAsyncStub
    oip: service_pb2_grpc.GRPCInferenceServiceAsyncStub

    async def post(self, path: str, body: Json) -> tuple[int, Json]:
        reply = await self.http.post(path, json=body)
        return reply.status_code, reply.json()

    async def open(self) -> str:
        _, session = await self.post("/v1/sessions", {"model": "tiny"})
        return str(session["id"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(root)
    write_tiny_forecast_bundle(root)
    return root


@pytest.fixture
async def front(root: Path) -> AsyncIterator[Front]:
    async with fronting(root) as front:
        yield front


@asynccontextmanager
async def fronting(root: Path, **settings: Any) -> AsyncIterator[Front]:
    async with serving(root, **settings) as service:
        inference = Inference(service)
        server = GrpcServer(service, "127.0.0.1:0", inference)
        await server.start()
        app = create_app(service)
        app.router.routes.extend(routes(inference))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://test") as http,
            aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            yield Front(
                service,
                http,
                predictor_pb2_grpc.PredictorStub(channel),
                sessions_pb2_grpc.SessionsStub(channel),
                service_pb2_grpc.GRPCInferenceServiceStub(channel),
            )
        await inference.stop()
        await server.stop()


async def reason_of(call: Any) -> str:
    """Why a gRPC call was refused."""
    with pytest.raises(RpcError) as caught:
        await call
    assert rpc_status.from_call(caught.value) is not None  # type: ignore[arg-type]
    return decode_status(caught.value).reason


def columns(**fields: Any) -> predictor_pb2.StreamRequest:
    return predictor_pb2.StreamRequest(columns=predictor_pb2.Columns(**fields))


@asynccontextmanager
async def stream_of(front: Front, num_lanes: int) -> AsyncIterator[Any]:
    """A columnar stream whose lanes from 0 on are new sessions."""
    predictor: Any = front.predictor  # its stub does not know that a stream may be written by hand
    stream = predictor.Stream()
    attach = predictor_pb2.Attach(sessions=[await front.open() for _ in range(num_lanes)])
    await stream.write(predictor_pb2.StreamRequest(attach=attach))
    assert not (await stream.read()).attached.errors
    yield stream
    await stream.done_writing()


# ---- the page


def shown() -> dict[str, str]:
    """What the page's tables say of each limit, by its name."""
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def test_the_page_shows_every_constant_as_it_is() -> None:
    constants = {name: value for name, value in vars(limits).items() if name.isupper()}
    told = {name: value for name, value in shown().items() if name.isupper()}
    assert told == {name: f"{value:,}" for name, value in constants.items()}


def test_the_page_shows_settings_that_are_there() -> None:
    flags = {name for name in shown() if name.startswith("--")}
    assert flags <= {flag(name) for name in FLAGS}


# ---- sequences and steps


async def test_a_prediction_takes_so_many_sequences(front: Front) -> None:
    for number, status in ((limits.MAX_SEQUENCES, 200), (limits.MAX_SEQUENCES + 1, 413)):
        found, document = await front.post("/v1/models/tiny:predict", {"sequences": [{"text": "a"}] * number})
        assert (found, document.get("reason")) == (status, None if status == 200 else "REQUEST_TOO_LARGE")
    request = predictor_pb2.PredictRequest(model="tiny")
    for _ in range(limits.MAX_SEQUENCES):
        request.sequences.add(text="a")
    assert len((await front.predictor.Predict(request)).predictions) == limits.MAX_SEQUENCES
    request.sequences.add(text="a")
    assert await reason_of(front.predictor.Predict(request)) == "REQUEST_TOO_LARGE"


async def test_too_many_sequences_are_not_looked_at(front: Front) -> None:
    number = limits.MAX_SEQUENCES + 1
    status, document = await front.post("/v1/models/tiny:predict", {"sequences": [0] * number})
    assert (status, document["reason"]) == (413, "REQUEST_TOO_LARGE")
    request = predictor_pb2.PredictRequest(model="tiny", sequences=[types_pb2.Input()] * number)
    assert await reason_of(front.predictor.Predict(request)) == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize("key", ["tokens", "values"])
async def test_too_many_steps_are_not_looked_at(front: Front, key: str) -> None:
    body = {key: ["no step"] * (limits.MAX_STEPS + 1)}
    status, document = await front.post(f"/v1/sessions/{await front.open()}:step", body)
    assert (status, document["reason"]) == (413, "REQUEST_TOO_LARGE")


LONG_INPUTS = [
    {"text": "a" * (limits.MAX_STEPS + 1)},
    {"tokens": [1] * (limits.MAX_STEPS + 1)},
    {"values": [[0.5, 1]] * (limits.MAX_STEPS + 1)},
]


@pytest.mark.parametrize("source", LONG_INPUTS, ids=["text", "tokens", "values"])
async def test_a_request_takes_so_many_steps(front: Front, source: Json) -> None:
    model = "tiny-forecast" if "values" in source else "tiny"
    _, session = await front.post("/v1/sessions", {"model": model})
    bodies = {
        f"/v1/models/{model}:predict": {"sequences": [source]},
        f"/v1/sessions/{session['id']}:step": source,
    }
    if model == "tiny":
        bodies["/v1/models/tiny:generate"] = {**source, "max_tokens": 1}
    for path, body in bodies.items():
        status, document = await front.post(path, body)
        assert (status, document["reason"]) == (413, "REQUEST_TOO_LARGE")


async def test_many_lanes_leave_room_in_the_queue(root: Path) -> None:
    async with fronting(root, max_queue=2 * limits.QUEUE_SHARE, max_rows=2) as front, stream_of(front, 200) as stream:
        for lengths in ([], [1] * 200):  # together, and lane by lane
            await stream.write(columns(lanes=range(200), tokens=[1] * 200, lengths=lengths))
            reply = (await stream.read()).columns
            assert (len(reply.positions), len(reply.errors)) == (200, 0)


async def test_the_steps_of_all_sequences_count(front: Front) -> None:
    half = [{"text": "a" * (limits.MAX_STEPS // 2 + 1)}] * 2
    status, document = await front.post("/v1/models/tiny:predict", {"sequences": half})
    assert (status, document["reason"]) == (413, "REQUEST_TOO_LARGE")


async def test_columns_take_so_many_steps(front: Front) -> None:
    async with stream_of(front, 1) as stream:
        await stream.write(columns(lanes=[0], lengths=[limits.MAX_STEPS + 1], tokens=[1] * (limits.MAX_STEPS + 1)))
        assert (await stream.read()).error.reason == "REQUEST_TOO_LARGE"


async def test_a_tensor_holds_so_many_steps(front: Front) -> None:
    message = service_pb2.ModelInferRequest(model_name="tiny")
    message.inputs.add(name="tokens", datatype="INT64", shape=[1, limits.MAX_STEPS + 1])
    message.outputs.add(name="surprise")
    message.raw_input_contents.append(np.ones(limits.MAX_STEPS + 1, np.int64).tobytes())
    assert await reason_of(front.oip.ModelInfer(message)) == "REQUEST_TOO_LARGE"


# ---- what sessions remember

LARGE: Json = {"text": "abc" * 100, "position": 0, "every_step": True, "top": 5}
OTHER = {**LARGE, "text": "abd" * 100}


async def test_a_large_reply_that_is_not_kept_any_more_is_a_conflict_that_says_so(root: Path) -> None:
    async with fronting(root, replies_mb=0) as front:
        session = await front.open()
        path = f"/v1/sessions/{session}:step"
        assert (await front.post(path, LARGE))[0] == 200
        for body, reason in ((LARGE, "REPLY_DROPPED"), (OTHER, "POSITION_CONFLICT")):
            status, document = await front.post(path, body)
            assert (status, document["reason"], document["position"]) == (409, reason, 300)
        request = sessions_pb2.StepRequest(session=session, text="abc" * 100, position=0, every_step=True, top=5)
        assert await reason_of(front.sessions.Step(request)) == "REPLY_DROPPED"
        small = {"text": "a", "position": 300, "top": 5}
        assert (await front.post(path, small)) == (await front.post(path, small)), "a small one is always kept"


async def test_large_replies_are_kept_within_their_budget(root: Path) -> None:
    async with fronting(root, replies_mb=1) as front:
        sessions = [await front.open() for _ in range(3)]
        long = {**LARGE, "text": "a" * 700, "top": 65}
        first, *_, last = [await front.post(f"/v1/sessions/{each}:step", long) for each in sessions]
        assert first[0] == 200
        assert (await front.post(f"/v1/sessions/{sessions[0]}:step", long))[1]["reason"] == "REPLY_DROPPED"
        assert await front.post(f"/v1/sessions/{sessions[-1]}:step", long) == last


async def test_a_durable_sessions_reply_is_read_from_its_record(root: Path, tmp_path: Path) -> None:
    async with fronting(root, replies_mb=0, store="sqlite", data_dir=tmp_path) as front:
        _, session = await front.post("/v1/sessions", {"model": "tiny", "durable": True})
        path = f"/v1/sessions/{session['id']}:step"
        assert (first := await front.post(path, LARGE))[0] == 200
        assert await front.post(path, LARGE) == first
        assert (await front.post(path, OTHER))[1]["reason"] == "POSITION_CONFLICT"


async def test_a_long_transcript_counts_too(root: Path) -> None:
    async with fronting(root, replies_mb=0) as front:
        path = f"/v1/sessions/{await front.open()}:generate"
        short, long = ({"text": "a", "max_tokens": number, "seed": 1} for number in (10, 100))
        assert (await front.post(path, {**short, "position": 0})) == (await front.post(path, {**short, "position": 0}))
        assert (await front.post(path, {**long, "position": 11}))[0] == 200
        status, document = await front.post(path, {**long, "position": 11})
        assert (status, document["reason"], document["position"]) == (409, "REPLY_DROPPED", 112)


async def test_the_replies_of_columns_count_together(root: Path) -> None:
    async with fronting(root, replies_mb=0) as front, stream_of(front, 20) as stream:
        message = columns(lanes=range(20), tokens=[1] * 20, positions=[0] * 20, top=65)
        await stream.write(message)
        assert [*(await stream.read()).columns.positions] == [1] * 20
        await stream.write(message)
        errors = (await stream.read()).columns.errors
        assert [each.error.reason for each in errors] == ["REPLY_DROPPED"] * 20


async def test_a_process_holds_so_many_sessions(root: Path, tmp_path: Path) -> None:
    async with fronting(root, max_sessions=2, store="sqlite", data_dir=tmp_path) as front:
        first = await front.open()
        assert (await front.post("/v1/sessions", {"model": "tiny", "durable": True}))[0] == 201
        await front.open()  # in place of the copy, which is read again when it is stepped
        status, document = await front.post("/v1/sessions", {"model": "tiny"})
        assert (status, document["reason"]) == (429, "TOO_MANY_SESSIONS")
        await front.sessions.Close(sessions_pb2.CloseRequest(session=first))
        await front.open()


async def test_the_longest_idle_leave_when_there_are_too_many_sessions(root: Path) -> None:
    async with fronting(root, max_sessions=2, evict_idle=0) as front:
        sessions = [await front.open() for _ in range(4)]
        found = [(await front.http.get(f"/v1/sessions/{each}")).status_code for each in sessions]
        assert found == [410, 410, 200, 200]


async def test_checkpoints_take_their_part_of_the_arenas_budget(root: Path) -> None:
    async with fronting(root, arena_mb=1) as front:
        budget = front.service._registry.budget  # noqa: SLF001
        before, opened, status = budget.used, list[str](), 200
        while status == 200:
            opened.append(await front.open())
            await front.post(f"/v1/sessions/{opened[-1]}:step", {"text": "a"})
            for name in "abcdefghia":
                status, document = await front.post(f"/v1/sessions/{opened[-1]}:checkpoint", {"name": name})
        assert (status, document["reason"]) == (429, "ARENA_FULL")
        assert len(opened) * limits.MAX_CHECKPOINTS * limits.CHECKPOINT_BYTES < 1 << 20
        for each in opened:
            await front.sessions.Close(sessions_pb2.CloseRequest(session=each))
        assert budget.used == before


# ---- what is told


async def test_a_step_tells_so_many_candidates(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, hidden=2, tokens=[f"t{index}" for index in range(limits.MAX_CANDIDATES + 1)])
    async with fronting(tmp_path) as front:
        path = f"/v1/sessions/{await front.open()}:step"
        status, document = await front.post(path, {"tokens": [1], "top": limits.MAX_CANDIDATES})
        assert (status, len(document["prediction"]["next"])) == (200, limits.MAX_CANDIDATES)
        status, document = await front.post(path, {"tokens": [1], "top": limits.MAX_CANDIDATES + 1})
        assert (status, document["reason"]) == (400, "BAD_TOP")
        async with stream_of(front, 2) as stream:
            await stream.write(columns(lanes=[0, 1], tokens=[1, 1], top=limits.MAX_CANDIDATES + 1))
            assert [each.error.reason for each in (await stream.read()).columns.errors] == ["BAD_TOP"] * 2


# ---- large bodies


async def test_a_large_body_has_so_many_parts(front: Front) -> None:
    for path in ("/v1/models/tiny:predict", "/v1/sessions", f"/v1/sessions/{await front.open()}:step"):
        status, document = await front.post(path, {"sequences": [{}] * limits.MAX_JSON_ITEMS})
        assert (status, document["reason"]) == (413, "REQUEST_TOO_LARGE")


async def test_a_large_message_has_so_many_fields(front: Front) -> None:
    request = predictor_pb2.PredictRequest(model="tiny")
    for _ in range(limits.MAX_MESSAGE_FIELDS):
        request.sequences.add()
    assert await reason_of(front.predictor.Predict(request)) == "REQUEST_TOO_LARGE"
    many = inference()
    for index in range(limits.MAX_INFERENCE_FIELDS):
        many.outputs.add(name=f"o{index}")
    assert await reason_of(front.oip.ModelInfer(many)) == "REQUEST_TOO_LARGE"
    predictor: Any = front.predictor
    stream = predictor.Stream()
    attach = predictor_pb2.Attach(sessions=["s"] * (limits.MAX_LANES + limits.MAX_MESSAGE_FIELDS))
    await stream.write(predictor_pb2.StreamRequest(attach=attach))
    assert (await stream.read()).error.reason == "REQUEST_TOO_LARGE"
    await stream.done_writing()


# ---- stop strings

STOPS = [
    (["x" * limits.MAX_STOP_LENGTH] * limits.MAX_STOP_STRINGS, True),
    (["x"] * (limits.MAX_STOP_STRINGS + 1), False),
    (["x" * (limits.MAX_STOP_LENGTH + 1)], False),
]


@pytest.mark.parametrize(("stop", "is_taken"), STOPS)
async def test_stop_strings_are_few_and_short(front: Front, stop: list[str], is_taken: bool) -> None:
    body = {"text": "abc", "max_tokens": 1, "stop": stop}
    for path in ("/v1/models/tiny:generate", f"/v1/sessions/{await front.open()}:generate"):
        status, document = await front.post(path, body)
        assert (status, document.get("reason")) == ((200, None) if is_taken else (400, "BAD_SAMPLING"))
    request = predictor_pb2.GenerateRequest(model="tiny", text="abc", max_tokens=1, stop=stop)
    if is_taken:
        assert [event.WhichOneof("event") async for event in front.predictor.Generate(request)][-1] == "done"
    else:
        assert await reason_of(anext(aiter(front.predictor.Generate(request)))) == "BAD_SAMPLING"


# ---- names

LONG = "n" * (limits.MAX_NAME_LENGTH + 1)
LONGEST = "n" * 1_000_000


@pytest.mark.parametrize("name", [LONG, LONGEST])
async def test_a_name_that_is_too_long_names_nothing(front: Front, name: str) -> None:
    status, document = await front.post("/v1/sessions", {"model": name})
    assert (status, document["reason"]) == (404, "UNKNOWN_MODEL")
    assert len(document["detail"]) < 2 * limits.MAX_NAME_LENGTH
    status, document = await front.post("/v1/sessions", {"model": "tiny", "version": name})
    assert (status, document["reason"]) == (404, "UNKNOWN_VERSION")
    for call in (
        front.sessions.Get(sessions_pb2.GetSessionRequest(session=name)),
        front.sessions.Step(sessions_pb2.StepRequest(session=name, text="a")),
        front.sessions.Fork(sessions_pb2.ForkRequest(session=name)),
    ):
        assert await reason_of(call) == "UNKNOWN_SESSION"


async def test_names_that_a_client_chooses_are_bounded(front: Front) -> None:
    session, longest = await front.open(), "n" * limits.MAX_NAME_LENGTH
    assert (await front.sessions.Open(sessions_pb2.OpenRequest(model="tiny", id=longest))).id == longest
    assert await reason_of(front.sessions.Open(sessions_pb2.OpenRequest(model="tiny", id=LONG))) == "BAD_SESSION_ID"
    keep = sessions_pb2.CheckpointRequest
    assert (await front.sessions.Checkpoint(keep(session=session, name=longest))).checkpoint == longest
    assert await reason_of(front.sessions.Checkpoint(keep(session=session, name=LONG))) == "BAD_CHECKPOINT"
    rewind = sessions_pb2.RewindRequest(session=session, checkpoint=LONG)
    assert await reason_of(front.sessions.Rewind(rewind)) == "UNKNOWN_CHECKPOINT"
    listing = sessions_pb2.ListSessionsRequest(page_token=LONG)
    assert await reason_of(front.sessions.List(listing)) == "BAD_PAGE"


async def test_a_message_quotes_no_more_than_it_may(front: Front) -> None:
    status, document = await front.post("/v1/sessions", {"model": "tiny", LONGEST: 1})
    assert (status, document["reason"]) == (400, "INVALID_INPUT")
    assert len(document["detail"]) <= limits.MAX_MESSAGE_LENGTH


# ---- the Open Inference Protocol


def inference(**fields: Any) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name="tiny", **fields)
    message.inputs.add(name="tokens", datatype="INT64", shape=[1, 1])
    message.raw_input_contents.append(np.int64(1).tobytes())
    return message


async def test_a_request_names_no_more_tensors_than_models_have(front: Front) -> None:
    many, several = inference(), inference()
    for index in range(limits.MAX_TENSORS + 1):
        many.outputs.add(name=f"o{index}")
    for _ in range(limits.MAX_TENSORS):
        several.outputs.add(name="logits")
    assert await reason_of(front.oip.ModelInfer(many)) == "TOO_MANY_TENSORS"
    assert await reason_of(front.oip.ModelInfer(several)) == "DUPLICATE_TENSOR"
    given = {"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [1]}
    reply = await front.http.post("/v2/models/tiny/infer", json={"inputs": [given] * (limits.MAX_TENSORS + 1)})
    assert (reply.status_code, reply.headers["tidegate-reason"]) == (400, "TOO_MANY_TENSORS")


async def test_a_request_has_no_more_parameters_than_it_may(front: Front) -> None:
    some, many, of_tensor = inference(), inference(), inference()
    for index in range(limits.MAX_PARAMETERS + 1):
        if index:
            some.parameters[f"triton_{index}"].bool_param = True
        many.parameters[f"triton_{index}"].bool_param = True
        of_tensor.inputs[0].parameters[f"triton_{index}"].bool_param = True
    await front.oip.ModelInfer(some)
    for message in (many, of_tensor):
        assert await reason_of(front.oip.ModelInfer(message)) == "TOO_MANY_PARAMETERS"


async def test_a_sequences_id_is_bounded(front: Front) -> None:
    taken, refused = inference(), inference()
    for message, length in ((taken, limits.MAX_SEQUENCE_ID_LENGTH), (refused, limits.MAX_SEQUENCE_ID_LENGTH + 1)):
        message.parameters["sequence_id"].string_param = "s" * length
        message.parameters["sequence_start"].bool_param = True
    await front.oip.ModelInfer(taken)
    assert await reason_of(front.oip.ModelInfer(refused)) == "BAD_PARAMETER"
