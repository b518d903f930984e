"""WebSockets on a real server: all kinds of frames keep their order and bounds, for whatever client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.service.http.running import until
from tests.service.http.scripted import LARGE_PREDICTION, LARGE_PREDICTION_JSON, PREDICTION, ScriptedCore
from tests.service.http.test_stream import PATH, settle, streams_of
from tests.service.transports.serving import Front, front
from tidegate import errors
from tidegate.api import Candidate, Input, Prediction
from tidegate.limits import LARGE_JSON_BYTES, MAX_IN_FLIGHT
from tidegate.transports.asgi import Application
from tidegate.transports.reply_queue import ReplyQueue

R = '{"text": "R"}'


@pytest.fixture
async def server(app: FastAPI) -> AsyncIterator[Front]:
    async with front(cast("Application", app)) as server:
        yield server


@pytest.fixture
async def client(server: Front, service: ScriptedCore) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws://127.0.0.1:{server.port}{PATH}") as client:
        await until(lambda: service.calls == [("get", "s-1")])
        yield client


async def answer(client: ClientConnection) -> Any:
    async with asyncio.timeout(60):
        return json.loads(await client.recv())


async def test_frames_of_all_kinds_are_answered(client: ClientConnection, service: ScriptedCore) -> None:
    await client.send(R)
    await client.send(R.encode())
    # Of three fragments in one read, h2corn 2.0.0 keeps the message until its client sends more.
    await client.send(['{"text": "', 'é"}'])
    assert [(await answer(client))["position"] for _ in range(3)] == [1, 2, 3]
    assert [call[2] for call in service.calls[1:]] == [Input(text="R"), Input(text="R"), Input(text="é")]


async def test_large_frames_and_answers_keep_their_place(client: ClientConnection, service: ScriptedCore) -> None:
    service.is_holding = True
    large = json.dumps({"tokens": [1] * LARGE_JSON_BYTES})
    for frame in (R, large, R, large, "{" + " " * LARGE_JSON_BYTES, R):
        await client.send(frame)
    await until(lambda: len(service.held) == 5)
    assert [len(call[2].tokens or "1") for call in service.calls[1:]] == [1, LARGE_JSON_BYTES, 1, LARGE_JSON_BYTES, 1]
    service.prediction = LARGE_PREDICTION
    for index in reversed(range(5)):
        service.answer(service.held[index])
        service.prediction = PREDICTION
    answers = [await answer(client) for _ in range(6)]
    assert [each.get("position", each.get("reason")) for each in answers] == [1, 2, 3, 4, "INVALID_JSON", 5]
    assert answers[-1]["prediction"] == LARGE_PREDICTION_JSON


async def test_a_client_that_leaves_while_a_large_answer_is_written_disturbs_nobody(
    app: FastAPI, service: ScriptedCore, server: Front
) -> None:
    service.prediction = LARGE_PREDICTION
    async with connect(f"ws://127.0.0.1:{server.port}{PATH}") as client:
        await client.send(R)
    await until(lambda: not len(streams_of(app).open))


async def test_answers_come_in_the_frames_order(client: ClientConnection, service: ScriptedCore) -> None:
    service.is_holding = True
    for token in range(5):
        await client.send(json.dumps({"tokens": [token]}))
    await client.send("{")
    await until(lambda: len(service.held) == 5)
    assert [call[2].tokens for call in service.calls[1:]] == [[0], [1], [2], [3], [4]]
    for future in reversed(service.held):
        service.answer(future)
    assert [(await answer(client)).get("position") for _ in range(6)] == [1, 2, 3, 4, 5, None]


async def test_frames_in_flight_are_bounded_and_none_overtakes(client: ClientConnection, service: ScriptedCore) -> None:
    service.is_holding = True
    num_frames = 4 * MAX_IN_FLIGHT
    for token in range(num_frames):
        await client.send(json.dumps({"tokens": [token]}))
    for num_answered in range(num_frames):
        await until(lambda: len(service.held) == min(num_frames, MAX_IN_FLIGHT + num_answered))  # noqa: B023
        await settle()
        assert len(service.held) == min(num_frames, MAX_IN_FLIGHT + num_answered)
        service.answer(service.held[num_answered])
        assert (await answer(client))["position"] == num_answered + 1
    assert [call[2].tokens for call in service.calls[1:]] == [[token] for token in range(num_frames)]


async def test_text_that_is_none_ends_the_connection(client: ClientConnection, service: ScriptedCore) -> None:
    await client.send(b"\xff", text=True)
    with pytest.raises(ConnectionClosed) as caught:
        await answer(client)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1007
    assert len(service.calls) == 1


@pytest.mark.parametrize("is_polite", [True, False])
async def test_a_client_that_leaves_cancels_what_is_in_flight(
    app: FastAPI, client: ClientConnection, service: ScriptedCore, is_polite: bool
) -> None:
    service.is_holding = True
    await client.send(R)
    await client.send(R)
    await until(lambda: len(service.held) == 2)
    if is_polite:
        await client.close()
    else:
        client.transport.abort()
    await until(lambda: len(streams_of(app).open) == 0)
    assert [future.cancelled() for future in service.held] == [True, True]


async def test_drain_answers_what_is_in_flight_then_closes(
    app: FastAPI, client: ClientConnection, service: ScriptedCore
) -> None:
    service.is_holding = True
    await client.send(R)
    await until(lambda: len(service.held) == 1)
    draining = asyncio.create_task(streams_of(app).drain())
    await settle()
    await client.send(R)
    await settle()
    service.answer(service.held[0])
    assert (await answer(client))["position"] == 1
    assert (await answer(client))["reason"] == "DRAINING"
    with pytest.raises(ConnectionClosed):
        await answer(client)
    assert client.close_code == 1001
    await draining
    assert len(service.held) == 1


async def test_a_stream_that_cannot_start_says_why(server: Front, service: ScriptedCore) -> None:
    service.error = errors.NotFoundError("no such session", reason="UNKNOWN_SESSION")
    async with connect(f"ws://127.0.0.1:{server.port}{PATH}") as client:
        assert (await answer(client))["reason"] == "UNKNOWN_SESSION"
        with pytest.raises(ConnectionClosed):
            await answer(client)
    assert client.close_code == 4404


NUM_FRAMES = 400


@pytest.fixture
async def full(app: FastAPI, client: ClientConnection, service: ScriptedCore) -> ReplyQueue:
    """The stream of a client that reads nothing, once no answer can be written and no frame is taken any more."""
    client.transport.pause_reading()
    service.prediction = Prediction(1, next=[[Candidate("R" * 100_000, 5, 0.5)]])
    for _ in range(NUM_FRAMES):
        await client.send(R)
    (queue,) = streams_of(app).open
    await until(lambda: queue.num_unwritten == MAX_IN_FLIGHT and queue.is_held_up)
    num_taken = len(service.held)
    await settle()
    assert len(service.held) == num_taken < NUM_FRAMES
    return queue


async def test_a_client_that_keeps_up_again_gets_all(client: ClientConnection, full: ReplyQueue) -> None:
    client.transport.resume_reading()
    assert [(await answer(client))["position"] for _ in range(NUM_FRAMES)] == [*range(1, NUM_FRAMES + 1)]


async def test_a_client_that_is_lost_frees_a_stream_that_is_full(
    app: FastAPI, client: ClientConnection, full: ReplyQueue
) -> None:
    client.transport.abort()
    await until(lambda: len(streams_of(app).open) == 0)


async def test_who_asks_elsewhere_is_told_where_websockets_are(server: Front) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"ws://{server.address}/v1/steps"):
            pass
    response = caught.value.response
    assert response.status_code == 404
    assert json.loads(response.body or b"")["reason"] == "NO_SUCH_PATH"
