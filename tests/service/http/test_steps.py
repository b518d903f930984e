"""Steps over a real connection: how they may come, how errors look, and the ends: of client, connection and server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI

from tests.clock import START
from tests.service.http.running import Running, Wire, request, running, until
from tests.service.http.scripted import LARGE_PREDICTION, LARGE_PREDICTION_JSON, PREDICTION_JSON, ScriptedCore
from tidegate import errors
from tidegate.api import Input, StepOptions
from tidegate.config import load_settings
from tidegate.limits import LARGE_JSON_BYTES
from tidegate.transports.http.app import create_app

STEP, DECODED = "/v1/sessions/s-1:step", "/v1/sessions/s-1%3Astep"
TEXT = b'{"text": "R"}'
CHUNKED = b"POST %b HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n%b\r\n0\r\n\r\n" % (
    STEP.encode(),
    TEXT,
)


@pytest.fixture
async def server(app: FastAPI) -> AsyncIterator[Running]:
    async with running(app) as server:
        yield server


@pytest.fixture
async def wire(server: Running) -> AsyncIterator[Wire]:
    async with Wire(server) as wire:
        yield wire


async def test_a_step_is_answered(wire: Wire, service: ScriptedCore) -> None:
    for position in (1, 2):  # on one connection
        wire.send(request(STEP, b'{"text": "R", "position": 3, "top": 2, "every_step": true}'))
        reply = await wire.reply()
        assert (reply.status, reply.fields["content-type"]) == (200, "application/json")
        assert reply.document == {"session": "s-1", "position": position, "prediction": PREDICTION_JSON}
    assert service.calls == [("step", "s-1", Input(text="R"), StepOptions(2, True), 3)] * 2


async def test_a_step_may_come_in_pieces(wire: Wire, service: ScriptedCore) -> None:
    for byte in request(STEP, TEXT):
        wire.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.reply()).status == 200
    assert service.calls == [("step", "s-1", Input(text="R"), StepOptions(), None)]


async def test_a_large_result_is_told_whole_and_the_connection_goes_on(wire: Wire, service: ScriptedCore) -> None:
    service.prediction = LARGE_PREDICTION
    for position in (1, 2):
        wire.send(request(STEP, TEXT))
        reply = await wire.reply()
        assert reply.document == {"session": "s-1", "position": position, "prediction": LARGE_PREDICTION_JSON}


UNUSUAL = [
    request(DECODED, TEXT),
    request(STEP + "?x=1", TEXT),
    request(STEP, TEXT.ljust(LARGE_JSON_BYTES + 1)),
    CHUNKED,
    request(STEP, TEXT, "Expect: 100-continue"),
    request(STEP, TEXT, "Connection: Upgrade", "Upgrade: h2c"),
]


@pytest.mark.parametrize("data", UNUSUAL)
async def test_unusual_requests_are_answered_alike(wire: Wire, service: ScriptedCore, data: bytes) -> None:
    wire.send(data)
    assert (await wire.reply()).document["position"] == 1
    assert service.calls == [("step", "s-1", Input(text="R"), StepOptions(), None)]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", STEP, 405), ("POST", "/v1/sessions/:step", 404), ("POST", "/v1/sessions/a:b:step", 404)],
)
async def test_what_is_no_step_is_refused_as_ever(wire: Wire, method: str, path: str, status: int) -> None:
    wire.send(request(path, TEXT, method=method))
    assert (await wire.reply()).status == status


ERRORS: list[tuple[Exception | None, bytes, tuple[str, ...], int]] = [
    (None, b"", (), 400),
    (None, b"{", (), 400),
    (None, b"[]", (), 400),
    (None, b'{"text": "R", "sise": 1}', (), 400),
    (None, TEXT, ("Tidegate-Timeout: soon",), 400),
    (None, TEXT, ("Tidegate-Timeout: -1", "Tidegate-Timeout: 1"), 400),
    (errors.PositionConflictError("at 6", position=6), TEXT, (), 409),
    (errors.OverloadedError("later", retry_after=2.5), TEXT, (), 429),
    (ZeroDivisionError("secret"), TEXT, (), 500),
]


@pytest.mark.parametrize(("error", "body", "fields", "status"), ERRORS)
async def test_errors_are_problem_documents(
    wire: Wire, service: ScriptedCore, error: Exception | None, body: bytes, fields: tuple[str, ...], status: int
) -> None:
    service.error = error
    wire.send(request(STEP, body, *fields))
    reply = await wire.reply()
    assert (reply.status, reply.document["status"]) == (status, status)
    assert reply.fields["content-type"] == "application/problem+json"
    assert reply.fields.get("retry-after") == ("3" if status == 429 else None)
    assert b"secret" not in reply.body


@pytest.mark.parametrize(
    ("error", "status"), [(errors.DeadlineExceededError("too late"), 504), (ZeroDivisionError("secret"), 500)]
)
async def test_an_error_may_come_later(wire: Wire, service: ScriptedCore, error: Exception, status: int) -> None:
    service.is_holding = True
    wire.send(request(STEP, TEXT))
    await until(lambda: len(service.held) == 1)
    service.held[0].set_exception(error)
    assert (await wire.reply()).status == status


async def test_a_small_limit_is_kept() -> None:
    service = ScriptedCore(load_settings({"max_message_mb": 0.001}))
    async with running(create_app(service)) as server, Wire(server) as wire:
        wire.send(request(STEP, TEXT.ljust(1048)))
        assert (await wire.reply()).status == 200
        wire.send(request(STEP, TEXT.ljust(1049)))
        assert (await wire.reply()).status == 413
    assert len(service.calls) == 1


async def test_the_clients_timeout_counts(wire: Wire, service: ScriptedCore) -> None:
    wire.send(request(STEP, TEXT, "TIDEGATE-Timeout: 1000000.5"))
    await wire.reply()
    wire.send(request(STEP, TEXT))
    await wire.reply()
    assert service.deadlines == [START + 1_000_000.5, START + service.settings.request_timeout]


async def test_pipelined_requests_are_answered_in_order(wire: Wire, service: ScriptedCore) -> None:
    service.is_holding = True
    wire.send(request(STEP, TEXT) + request("/livez", b"", method="GET") + request(STEP, TEXT) + request(STEP, TEXT))
    for position in (1, 2, 3):
        await until(lambda: len(service.held) == position)  # noqa: B023 - asked at once
        service.answer(service.held[-1])
        assert (await wire.reply()).document["position"] == position
        if position == 1:
            assert (await wire.reply()).document == {"status": "alive"}


async def test_a_client_that_hangs_up_cancels_its_step(wire: Wire, service: ScriptedCore) -> None:
    service.is_holding = True
    wire.send(request(STEP, TEXT))
    await until(lambda: len(service.held) == 1)
    wire.hang_up()
    await until(service.held[0].cancelled)


async def test_a_client_that_hangs_up_in_mid_body_costs_nothing(wire: Wire, service: ScriptedCore) -> None:
    wire.send(request(STEP, TEXT)[:-1])
    wire.hang_up()
    await asyncio.sleep(0)
    assert service.calls == []


async def test_a_connection_closes_when_its_client_wishes(wire: Wire) -> None:
    wire.send(request(STEP, TEXT, "Connection: close"))
    assert (await wire.reply()).fields["connection"] == "close"
    assert await wire.is_closed()


async def test_a_step_that_is_given_up_below_is_told(wire: Wire, service: ScriptedCore) -> None:
    service.is_holding = True
    wire.send(request(STEP, TEXT))
    await until(lambda: len(service.held) == 1)
    service.held[0].cancel()
    assert (await wire.reply()).status == 503


async def test_a_server_that_ends_answers_first(server: Running, wire: Wire, service: ScriptedCore) -> None:
    service.is_holding = True
    wire.send(request(STEP, TEXT))
    await until(lambda: len(service.held) == 1)
    stopping = asyncio.create_task(server.server.stop(grace=60))
    await asyncio.sleep(0)
    service.answer(service.held[0])
    assert (await wire.reply()).status == 200
    assert await wire.is_closed()
    await stopping


async def test_a_server_that_ends_closes_idle_connections(server: Running, wire: Wire) -> None:
    wire.send(request(STEP, TEXT))
    await wire.reply()
    await server.server.stop(grace=60)
    assert await wire.is_closed()
