"""The client against the real core: however a sequence is sent, the model says the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tests.service.grpc_server import GrpcServer
from tidegate import errors
from tidegate.api import Candidate, Prediction
from tidegate.client import AsyncClient
from tidegate.config import load_settings
from tidegate.service import Service

TEXT = "ROMEO: But, soft! what light"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    write_tiny_bundle(tmp_path)
    write_tiny_forecast_bundle(tmp_path)
    write_tiny_stream_bundle(tmp_path)
    service = Service(load_settings({"bundles": tmp_path, "store": "none"}))
    await service.start()
    server = GrpcServer(service, "127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{server.port}", timeout=60) as client:
        yield client
    await server.stop()
    await service.stop()


def assert_same(found: Any, expected: Any) -> None:
    """DESIGN.md: "Equal, here and in every test"."""
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def by_id(row: Sequence[Candidate]) -> list[float]:
    """Probabilities in the order of ids, so that near ties compare."""
    return [each.probability for each in sorted(row, key=lambda each: each.id)]


def rows(predictions: list[Prediction]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """[step, id]: every candidate's probability."""
    return np.array([by_id(row) for prediction in predictions for row in prediction.next or []])


async def whole(client: AsyncClient, text: str = TEXT) -> Prediction:
    return (await client.predict("tiny", [text], top=65, every_step=True)).predictions[0]


async def test_unary_steps_equal_the_whole(client: AsyncClient) -> None:
    async with client.open("tiny") as session:
        steps = [(await session.step(letter, top=65)).prediction for letter in TEXT]
        assert session.position == len(TEXT)
    assert_same(rows(steps), rows([await whole(client)]))


async def test_a_pipelined_stream_equals_the_whole(client: AsyncClient) -> None:
    async with client.open("tiny") as session, session.stream() as stream:
        chunks = [TEXT[:1], TEXT[1:9], TEXT[9:10], TEXT[10:]]
        for chunk in chunks:
            await stream.send(chunk, top=65, every_step=True)
        steps = [(await stream.receive()).prediction for _ in chunks]
    assert_same(rows(steps), rows([await whole(client)]))


async def test_columns_equal_the_whole(client: AsyncClient) -> None:
    texts = [TEXT, TEXT[5:] + TEXT[:5], TEXT[::-1]]
    vocabulary = {each.token: each.id for row in (await whole(client)).next or [] for each in row}
    sessions = [await client.open("tiny") for _ in texts]
    steps = []
    async with client.stream() as stream:
        await stream.attach(sessions)
        for letters in zip(*texts, strict=True):
            result = await stream.step([0, 1, 2], tokens=[vocabulary[letter] for letter in letters], top=65)
            assert result.errors == {}
            assert result.ids is not None
            assert result.probabilities is not None
            steps.append(np.take_along_axis(result.probabilities, result.ids.argsort(axis=1), axis=1))
    # [lane, step, id]
    found = np.stack(steps, axis=1)
    for lane, text in zip(found, texts, strict=True):
        assert_same(lane, rows([await whole(client, text)]))


async def test_forecast_columns_equal_the_whole(client: AsyncClient) -> None:
    values = np.stack([np.linspace(80, 120, 12), np.arange(12) % 24], axis=1)
    prediction = (await client.predict("tiny-forecast", [values], every_step=True)).predictions[0]
    assert prediction.forecast is not None
    assert prediction.surprise is not None
    async with client.open("tiny-forecast") as session, client.stream() as stream:
        await stream.attach([session])
        result = await stream.step([0], values=values, lengths=[12], every_step=True)
    assert result.forecast is not None
    assert result.forecast.shape == (12, 3, 3)
    assert result.quantiles == prediction.forecast[0].quantiles == (0.1, 0.5, 0.9)
    assert_same(result.forecast, [row.values for row in prediction.forecast])
    assert_same(result.surprise, prediction.surprise.steps)


async def test_tensor_columns_equal_the_whole(client: AsyncClient) -> None:
    values = np.linspace(-1, 1, 10).reshape(5, 2)
    prediction = (await client.predict("tiny-stream", [values], every_step=True)).predictions[0]
    assert prediction.outputs is not None
    async with client.open("tiny-stream") as session, client.stream() as stream:
        await stream.attach([session])
        result = await stream.step([0], values=values, lengths=[5], every_step=True)
    assert_same(result.outputs["score"], prediction.outputs["score"])


async def test_a_repeat_gets_the_stored_reply(client: AsyncClient) -> None:
    async with client.open("tiny") as session:
        first = await session.step("R", top=3)
        session.position = 0
        assert await session.step("R", top=3) == first
        session.position = 0
        with pytest.raises(errors.PositionConflictError) as caught:
            await session.step("x")
        assert caught.value.position == 1


async def test_a_generation_can_be_repeated_by_its_seed(client: AsyncClient) -> None:
    once, again = [[event async for event in client.generate("tiny", "RO", max_tokens=20, seed=5)] for _ in range(2)]
    assert once == again
    assert once[-1].position == 22


async def test_bad_input_is_told_and_disturbs_nobody(client: AsyncClient) -> None:
    async with client.open("tiny") as session:
        for bad in ({"text": "a€"}, {"tokens": [65]}, {"values": [[1.0]]}, {"text": ""}, {}):
            with pytest.raises(errors.InvalidInputError):
                await session.step(**bad)
        assert (await session.step("a")).position == 1
    with pytest.raises(errors.SessionEndedError) as caught:
        await session.step("a")
    assert caught.value.reason == "SESSION_CLOSED"
    with pytest.raises(errors.NotFoundError):
        await client.model("missing")


async def test_many_sessions_at_once_are_disturbed_by_none_that_leaves(client: AsyncClient) -> None:
    expected = rows([await whole(client)])

    async def walk(is_leaving: bool) -> None:
        async with client.open("tiny") as session, session.stream() as stream:
            steps = []
            for number, letter in enumerate(TEXT):
                if is_leaving and number == 5:
                    await stream.send(letter)
                    return
                steps.append((await stream.step(letter, top=65)).prediction)
            assert_same(rows(steps), expected)

    await asyncio.gather(*(walk(is_leaving=number % 2 == 0) for number in range(16)))
