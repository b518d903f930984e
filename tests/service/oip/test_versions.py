"""A sequence is checked, run and told by the version that it runs on, however the request came to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.bundles import write_tiny_bundle
from tests.clock import ManualClock
from tests.service.serving import serving
from tidegate.service import Service
from tidegate.transports.oip.inference import Inference
from tidegate.transports.oip.requests import InferReply, InferRequest, Options
from tidegate.transports.oip.tensors import NamedTensor

TOKENS = np.arange(6).reshape(1, 6)


@asynccontextmanager
async def inferring(bundles: Path, **settings: Any) -> AsyncIterator[tuple[Service, Inference]]:
    async with serving(bundles, ManualClock(), **settings) as service:
        inference = Inference(service)
        yield service, inference
        await inference.stop()


def request(*, version: str = "", tokens: Any = TOKENS, **options: Any) -> InferRequest:
    asked = Options(sequence="s", **options)
    return InferRequest("tiny", version, "", asked, [NamedTensor("tokens", tokens)])


def told(reply: InferReply) -> InferReply:
    return reply


async def infer(inference: Inference, asked: InferRequest) -> InferReply:
    return await inference.submit(asked).reply(told)


async def test_what_follows_a_start_at_once_is_of_the_version_that_the_start_named(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    write_tiny_bundle(tmp_path, version="2", cell="gru")
    async with inferring(tmp_path, store="none") as (_, inference):
        asked = [request(version="1", start=True), request(), request(end=True)]
        replies = await asyncio.gather(*(inference.submit(each).reply(told) for each in asked))
        assert [reply.version for reply in replies] == ["1", "1", "1"]


async def test_a_stored_sequence_is_told_by_its_version_though_a_newer_one_came(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    write_tiny_bundle(bundles)
    durable: dict[str, Any] = {"durable": True, "store": "sqlite", "data_dir": tmp_path / "data"}
    async with inferring(bundles, **durable) as (_, inference):
        await infer(inference, request(start=True))
    write_tiny_bundle(bundles, version="2", cell="gru")
    async with inferring(bundles, **durable) as (_, inference):
        assert [(await infer(inference, request())).version for _ in range(3)] == ["1"] * 3
        assert (await infer(inference, request(start=True))).version == "2"
        told = await inference.model_statistics("tiny", "1")
        assert told["model_stats"][0]["inference_count"] == 3
