"""Random histories on one stream, everything in flight at once: each request is answered as if it had come alone.

The oracle is a dictionary: which sequences run, and what each has been fed since it began.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from grpc import aio
from numpy.typing import NDArray

from tests.bundles import write_tiny_stream_bundle
from tests.service.grpc_server import GrpcServer
from tests.service.oip.ways import Tensor, message, read_message, set_parameters
from tests.service.serving import serving
from tidegate.bundle import read_bundle
from tidegate.engine.runner import Runner
from tidegate.oip import service_pb2, service_pb2_grpc
from tidegate.transports.oip.inference import Inference

if TYPE_CHECKING:
    Stub = service_pb2_grpc.GRPCInferenceServiceAsyncStub

Array = NDArray[Any]
IDS: list[int | str] = [5, "5", 2**63 + 1, "five"]
COUNT = 400


class Asked(NamedTuple):
    sequence: int | str
    values: Array
    start: bool
    end: bool


class Oracle:
    """What each request must be answered by: a run and the steps of it, or a refusal."""

    def __init__(self) -> None:
        self._running: dict[int | str, list[Array]] = {}

    def answer(self, asked: Asked) -> tuple[list[Array], slice] | str:
        fed = self._running.get(asked.sequence)
        if asked.start:
            fed = self._running[asked.sequence] = []
        elif fed is None:
            return "START"
        elif len(fed[0]) != len(asked.values):
            return "batch"
        begin = sum(each.shape[1] for each in fed)
        fed.append(asked.values)
        if asked.end:
            del self._running[asked.sequence]
        return fed, slice(begin, begin + asked.values.shape[1])


def history(seed: int) -> list[Asked]:
    random, numbers = Random(seed), np.random.default_rng(seed)
    asked = []
    for _ in range(COUNT):
        shape = (random.choice([1, 1, 1, 2]), random.choice([1, 1, 3]), 2)
        values = numbers.normal(size=shape).astype(np.float32)
        asked.append(Asked(random.choice(IDS), values, random.random() < 0.15, random.random() < 0.1))
    return asked


def expected(bundle: Path, fed: list[Array]) -> Array:
    """The scores of a whole run."""
    runner = Runner(read_bundle(bundle))
    values = np.concatenate(fed, axis=1)
    states: list[Any] = [
        np.full([len(values) if axis == "batch" else int(axis) for axis in spec.axes], spec.initial, spec.dtype)
        for spec in read_bundle(bundle).manifest.states
    ]
    return runner.run([values], states)[0]["score"]


@pytest.fixture(params=["ephemeral", "durable"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Path, Stub]]:
    bundle = write_tiny_stream_bundle(tmp_path / "bundles")
    kept = {"store": "sqlite", "data_dir": tmp_path / "data", "durable": request.param == "durable"}
    async with serving(tmp_path / "bundles", **kept) as service:
        inference = Inference(service)
        server = GrpcServer(service, "127.0.0.1:0", inference)
        await server.start()
        async with aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield bundle, service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await server.stop()
        await inference.stop()


@pytest.mark.parametrize("seed", range(3))
async def test_every_request_is_answered_as_if_it_had_come_alone(served: tuple[Path, Stub], seed: int) -> None:
    bundle, stub = served
    asked, oracle = history(seed), Oracle()
    due = [oracle.answer(each) for each in asked]

    async def requests() -> AsyncIterator[service_pb2.ModelInferRequest]:
        for number, each in enumerate(asked):
            sent = message("tiny-stream", [Tensor("values", each.values)], id=str(number))
            flags = {"sequence_start": each.start, "sequence_end": each.end}
            set_parameters(sent.parameters, {"sequence_id": each.sequence, **flags})
            yield sent

    unseen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    replies = [reply async for reply in stub.ModelStreamInfer(requests())]
    assert [reply.infer_response.id for reply in replies] == [str(number) for number in range(COUNT)]
    wanted: dict[int, Array] = {}
    for reply, answer in zip(replies, due, strict=True):
        if isinstance(answer, str):
            assert answer in reply.error_message
            continue
        fed, steps = answer
        assert not reply.error_message
        if id(fed) not in wanted:  # one run of the graph for each sequence, not for each request
            wanted[id(fed)] = expected(bundle, fed)
        score = read_message(reply.infer_response)["score"]
        np.testing.assert_allclose(score, wanted[id(fed)][:, steps], rtol=1e-4, atol=1e-5)
    gc.collect()
    assert unseen == [], "an error of a row that nobody took note of"
