"""All kinds of frames, mixed at random, say what gRPC's stream says to the same steps, on a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import grpc
import numpy as np
import pytest
from grpc import aio
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.bundles import VOCABULARY
from tests.service.serving import EVERY, numbers, serving, write_bundles
from tests.service.transports.serving import front
from tidegate.api import SessionRequest
from tidegate.observability.requests import RequestMetrics
from tidegate.proof import ABSOLUTE, excess
from tidegate.service import Service
from tidegate.transports.asgi import Application, Receive, Scope, Send
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.grpc.calls import Context
from tidegate.transports.grpc.stream import step_queue
from tidegate.transports.http.app import create_app
from tidegate.v1 import predictor_pb2_grpc, types_pb2
from tidegate.v1.predictor_pb2 import Attach, Columns, StreamReply, StreamRequest
from tidegate.v1.sessions_pb2 import StepRequest
from tidegate.wire.columns import decode_columns_reply
from tidegate.wire.predictions import decode_step

TEXT = "tiny-gru"
NUM_STEPS = 40
WIDTHS = {"tiny-forecast": (2, 9), "tiny-stream": (2, 4)}  # numbers of a step, and of what is told of it
Numbers = NDArray[np.float64]


class Chunk(NamedTuple):
    """Steps, token ids [step] or rows of numbers [step, feature], and the kind of the frame that they go in."""

    kind: str
    steps: Numbers
    every_step: bool

    @property
    def request(self) -> StreamRequest:
        step = StepRequest(top=EVERY, every_step=self.every_step, **self.input)
        return StreamRequest(step=step)

    @property
    def input(self) -> dict[str, Any]:
        if self.steps.ndim == 1:
            return {"tokens": self.steps.astype(np.int64).tolist()}
        return {"values": types_pb2.Values(width=self.steps.shape[1], data=self.steps.ravel())}

    @property
    def frame(self) -> str | bytes:
        """What a client sends; the lane of its session is 7."""
        if self.kind == "message":
            return self.request.SerializeToString()
        if self.kind == "columns":
            lengths = [len(self.steps)]
            columns = Columns(lanes=[7], lengths=lengths, top=EVERY, every_step=self.every_step, **self.input)
            return StreamRequest(columns=columns).SerializeToString()
        if self.kind == "floats":
            return self.steps.astype("<f4").tobytes()
        key = "tokens" if self.steps.ndim == 1 else "values"
        steps = self.steps.astype(np.int64 if self.steps.ndim == 1 else np.float64).tolist()
        return json.dumps({key: steps, "top": EVERY, "every_step": self.every_step})

    def read(self, reply: str | bytes) -> Numbers:
        """What a reply says, [step, numbers], without surprise."""
        if isinstance(reply, str):
            return self._read_json(json.loads(reply))
        if self.kind == "floats":
            return np.frombuffer(reply, "<f4").reshape(len(self.steps), -1).astype(np.float64)
        message = StreamReply.FromString(reply)
        return _numbers_of_columns(message) if self.kind == "columns" else numbers_of_step(message)

    def _read_json(self, document: dict[str, Any]) -> Numbers:
        prediction = document["prediction"]
        (told,) = (prediction[key] for key in ("next", "forecast", "outputs") if key in prediction)
        if "outputs" in prediction:
            told = told["score"]
        rows = told if self.every_step else [told]
        if "next" in prediction:
            rows = [[each["probability"] for each in sorted(row, key=lambda it: int(it["id"]))] for row in rows]
        if "forecast" in prediction:
            rows = [row["values"] for row in rows]
        return np.array([np.ravel(row) for row in rows], np.float64)


def numbers_of_step(reply: StreamReply) -> Numbers:
    prediction = decode_step(reply.step, every_step=True).prediction
    prediction.surprise = None
    return numbers(prediction)


def _numbers_of_columns(reply: StreamReply) -> Numbers:
    result = decode_columns_reply(reply.columns)
    if result.ids is not None and result.probabilities is not None:
        return np.take_along_axis(result.probabilities, result.ids.argsort(axis=1), axis=1).astype(np.float64)
    told = result.forecast if result.forecast is not None else result.outputs["score"]
    return np.array(told, np.float64).reshape(len(told), -1)


def chunks_of(model: str, kinds: Sequence[str], rng: Random) -> list[Chunk]:
    """A random sequence in random pieces."""
    steps = [rng.randrange(len(VOCABULARY)) for _ in range(NUM_STEPS)]
    if model in WIDTHS:
        steps = [[rng.gauss(0, 1) for _ in range(WIDTHS[model][0])] for _ in range(NUM_STEPS)]  # type: ignore[misc]
    whole = np.array(steps, np.float32).astype(np.float64)
    cuts = [0, *sorted(rng.sample(range(1, NUM_STEPS), 12)), NUM_STEPS]
    pieces = [whole[start:stop] for start, stop in pairwise(cuts)]
    chosen = [rng.choice(kinds) for _ in pieces]
    return [
        Chunk(kind, piece, kind == "floats" or rng.random() < 0.5) for kind, piece in zip(chosen, pieces, strict=True)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
async def service(root: Path) -> AsyncIterator[Service]:
    async with serving(root) as service:
        yield service


@pytest.fixture
async def address(service: Service) -> AsyncIterator[str]:
    requests, adapter = RequestMetrics(service.clock), GrpcAdapter()
    app = cast("Application", create_app(service, requests))

    async def run(_: object, context: Context) -> None:
        await step_queue(service, context, requests).run()

    method = grpc.stream_stream_rpc_method_handler(cast("Any", run), StreamRequest.FromString, _serialized)
    adapter.add_registered_method_handlers("tidegate.v1.Predictor", {"Stream": method})

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        is_grpc = scope["type"] == "http" and adapter.speaks(scope)
        await (adapter if is_grpc else app)(scope, receive, send)

    async with front(both) as served:
        yield served.address


def _serialized(reply: StreamReply) -> bytes:
    return reply.SerializeToString()


async def by_grpc(address: str, session: str, chunks: Sequence[Chunk]) -> list[Numbers]:
    requests = [chunk.request for chunk in chunks]
    requests[0].step.session = session
    async with aio.insecure_channel(address) as channel:
        stub: Any = predictor_pb2_grpc.PredictorStub(channel)
        return [numbers_of_step(reply) async for reply in stub.Stream(iter(requests))]


async def by_frames(client: ClientConnection, session: str, chunks: Sequence[Chunk]) -> list[Numbers]:
    """Send all, then read all."""
    has_lane = any(chunk.kind == "columns" for chunk in chunks)
    if has_lane:
        await client.send(StreamRequest(attach=Attach(first_lane=7, sessions=[session])).SerializeToString())
    for chunk in chunks:
        await client.send(chunk.frame)
    async with asyncio.timeout(60):
        if has_lane:
            assert StreamReply.FromString(cast("bytes", await client.recv())).attached.errors == []
        return [chunk.read(await client.recv()) for chunk in chunks]


async def opened(service: Service, model: str) -> str:
    return (await service.open_session(SessionRequest(model))).id


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (TEXT, ["text", "message", "columns"]),
        ("tiny-forecast", ["text", "message", "columns"]),
        ("tiny-stream", ["text", "message", "columns"]),
        ("tiny-forecast", ["text", "floats"]),
        ("tiny-stream", ["text", "floats"]),
    ],
)
async def test_mixed_frames_say_what_grpc_s_stream_says(
    service: Service, address: str, model: str, kinds: list[str], seed: int
) -> None:
    chunks = chunks_of(model, kinds, Random(seed))
    expected = await by_grpc(address, await opened(service, model), chunks)
    session = await opened(service, model)
    offered = [Subprotocol("tidegate.f32" if "floats" in kinds else "tidegate.json")]
    async with connect(f"ws://{address}/v1/sessions/{session}/stream", subprotocols=offered) as client:
        assert client.subprotocol == offered[0]
        told = await by_frames(client, session, chunks)
    assert [each.shape for each in told] == [each.shape for each in expected]
    assert max(excess(*pair) for pair in zip(told, expected, strict=True)) <= ABSOLUTE
    assert (await service.get_session(session)).position == NUM_STEPS


@pytest.mark.parametrize("model", WIDTHS)
async def test_a_session_that_was_opened_here_takes_numbers(service: Service, address: str, model: str) -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(5, WIDTHS[model][0])).astype("<f4")
    async with connect(f"ws://{address}/v1/stream", subprotocols=[Subprotocol("tidegate.f32")]) as client:
        await client.send(json.dumps({"model": model, "id": f"{model}-here"}))
        assert json.loads(await client.recv())["id"] == f"{model}-here"
        await client.send(steps.tobytes())
        await client.send(steps[:1].tobytes())
        sizes = [len(cast("bytes", await client.recv())) for _ in range(2)]
    assert sizes == [4 * 5 * WIDTHS[model][1], 4 * WIDTHS[model][1]]


BAD_FRAMES = {
    bytes(9): "a frame of 9 bytes is no whole number of steps: a step is 2 numbers of 4 bytes, 8 bytes",
    bytes(12): "a frame of 12 bytes is no whole number of steps: a step is 2 numbers of 4 bytes, 8 bytes",
    b"": "the sequence is empty: values need at least one row",
    np.array([0, np.nan], "<f4").tobytes(): "row 0: ",
}


async def test_numbers_that_are_no_steps_are_refused_with_the_reason_and_the_stream_goes_on(
    service: Service, address: str
) -> None:
    session = await opened(service, "tiny-stream")
    offered = [Subprotocol("tidegate.f32")]
    async with connect(f"ws://{address}/v1/sessions/{session}/stream", subprotocols=offered) as client:
        for frame in BAD_FRAMES:
            await client.send(frame)
        await client.send(bytes(8))
        told = [json.loads(await client.recv())["detail"] for _ in BAD_FRAMES]
        assert len(await client.recv()) == 16
    assert all(each.startswith(detail) for each, detail in zip(told, BAD_FRAMES.values(), strict=True))
    assert (await service.get_session(session)).position == 1
