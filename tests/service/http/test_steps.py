"""The short cut of small steps: it answers as the route does, byte for byte, and leaves the rest to uvicorn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvloop
from fastapi import FastAPI

from tests.clock import START
from tests.service.http.fake import LARGE_PREDICTION, LARGE_PREDICTION_JSON, PREDICTION_JSON, FakeService
from tests.service.http.running import Reply, Running, Wire, request, running, until
from tidegate import errors
from tidegate.config import load_settings
from tidegate.core import Ask, Input
from tidegate.limits import LARGE_JSON_BYTES
from tidegate.observe.requests import Requests

STEP, DECODED = "/v1/sessions/s-1:step", "/v1/sessions/s-1%3Astep"
TEXT = b'{"text": "R"}'
CHUNKED = b"POST %b HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n%b\r\n0\r\n\r\n" % (
    STEP.encode(),
    TEXT,
)


@pytest.fixture
async def server(app: FastAPI, service: FakeService) -> AsyncIterator[Running]:
    async with running(app, service) as server:
        yield server


@pytest.fixture
async def wire(server: Running) -> AsyncIterator[Wire]:
    async with Wire(server) as wire:
        yield wire


@pytest.fixture
async def bare(service: FakeService) -> AsyncIterator[Wire]:
    """A connection to an application without routes: only the short cut can answer a step there."""
    app = FastAPI(openapi_url=None)
    app.state.service = service.face
    app.state.requests = Requests(service.clock)
    async with running(app, service) as server, Wire(server) as wire:
        yield wire


async def test_a_step_is_answered(bare: Wire, service: FakeService) -> None:
    for position in (1, 2):  # on one connection
        bare.send(request(STEP, b'{"text": "R", "position": 3, "top": 2, "every_step": true}'))
        reply = await bare.reply()
        assert (reply.status, reply.fields["content-type"]) == (200, "application/json")
        assert reply.document == {"session": "s-1", "position": position, "prediction": PREDICTION_JSON}
    assert service.calls == [("step", "s-1", Input(text="R"), Ask(2, True), 3)] * 2


async def test_a_step_may_come_in_pieces(bare: Wire, service: FakeService) -> None:
    for byte in request(STEP, TEXT):
        bare.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await bare.reply()).status == 200
    assert service.calls == [("step", "s-1", Input(text="R"), Ask(), None)]


async def test_a_large_result_is_told_whole_and_the_connection_goes_on(bare: Wire, service: FakeService) -> None:
    service.prediction = LARGE_PREDICTION
    for position in (1, 2):
        bare.send(request(STEP, TEXT))
        reply = await bare.reply()
        assert reply.document == {"session": "s-1", "position": position, "prediction": LARGE_PREDICTION_JSON}


UNUSUAL = [
    request(DECODED, TEXT),
    request(STEP + "?x=1", TEXT),
    request(STEP, TEXT, version="1.0"),
    request(STEP, TEXT.ljust(LARGE_JSON_BYTES + 1)),
    CHUNKED,
]


# uvicorn has answers of its own to these.
OTHERS = [
    request(STEP, TEXT, "Expect: 100-continue"),
    request(STEP, TEXT, "Connection: Upgrade", "Upgrade: h2c"),
]


@pytest.mark.parametrize("data", UNUSUAL + OTHERS)
async def test_what_is_unusual_goes_the_long_way(bare: Wire, service: FakeService, data: bytes) -> None:
    bare.send(data)
    assert (await bare.reply()).status == 404
    assert service.calls == []


@pytest.mark.parametrize("data", UNUSUAL)
async def test_the_long_way_answers_it(wire: Wire, service: FakeService, data: bytes) -> None:
    wire.send(data)
    assert (await wire.reply()).document["position"] == 1
    assert service.calls == [("step", "s-1", Input(text="R"), Ask(), None)]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", STEP, 405), ("POST", "/v1/sessions/:step", 404), ("POST", "/v1/sessions/a:b:step", 404)],
)
async def test_what_is_no_step_is_refused_as_ever(wire: Wire, method: str, path: str, status: int) -> None:
    wire.send(request(path, TEXT, method=method))
    assert (await wire.reply()).status == status


ERRORS: list[tuple[Exception | None, bytes, tuple[str, ...]]] = [
    (None, b"", ()),
    (None, b"{", ()),
    (None, b"[]", ()),
    (None, b'{"text": "R", "sise": 1}', ()),
    (None, TEXT, ("Tidegate-Timeout: soon",)),
    (None, TEXT, ("Tidegate-Timeout: -1", "Tidegate-Timeout: 1")),
    (errors.PositionConflictError("at 6", position=6), TEXT, ()),
    (errors.OverloadedError("later", retry_after=2.5), TEXT, ()),
    (ZeroDivisionError("secret"), TEXT, ()),
]


@pytest.mark.parametrize(("error", "body", "fields"), ERRORS)
async def test_errors_are_those_of_the_long_way(
    wire: Wire, service: FakeService, error: Exception | None, body: bytes, fields: tuple[str, ...]
) -> None:
    service.error = error
    wire.send(request(STEP, body, *fields))
    short = await wire.reply()
    wire.send(request(DECODED, body, *fields))
    assert short == await wire.reply()
    assert short.status >= 400
    assert b"secret" not in short.body


@pytest.mark.parametrize("error", [errors.DeadlineExceededError("too late"), ZeroDivisionError("secret")])
async def test_an_error_may_come_later(wire: Wire, service: FakeService, error: Exception) -> None:
    service.is_held = True
    replies: list[Reply] = []
    for path in (STEP, DECODED):
        wire.send(request(path, TEXT))
        await until(lambda: len(service.held) == len(replies) + 1)
        service.held[-1].set_exception(error)
        replies.append(await wire.reply())
    assert replies[0] == replies[1]


async def test_a_small_limit_is_kept() -> None:
    service = FakeService(load_settings({"max_message_mb": 0.001}))
    app = FastAPI(openapi_url=None)
    app.state.service = service.face
    app.state.requests = Requests(service.clock)
    async with running(app, service) as server, Wire(server) as wire:
        wire.send(request(STEP, TEXT.ljust(1048)))
        assert (await wire.reply()).status == 200
        wire.send(request(STEP, TEXT.ljust(1049)))
        assert (await wire.reply()).status == 404
    assert len(service.calls) == 1


async def test_the_clients_timeout_counts(bare: Wire, service: FakeService) -> None:
    bare.send(request(STEP, TEXT, "TIDEGATE-Timeout: 1000000.5"))
    await bare.reply()
    bare.send(request(STEP, TEXT))
    await bare.reply()
    assert service.deadlines == [START + 1_000_000.5, START + service.settings.request_timeout]


async def test_pipelined_requests_are_answered_in_order(wire: Wire, service: FakeService) -> None:
    service.is_held = True
    wire.send(request(STEP, TEXT) + request("/livez", b"", method="GET") + request(STEP, TEXT) + request(STEP, TEXT))
    for position in (1, 2, 3):
        await until(lambda: len(service.held) == position)  # noqa: B023 - asked at once
        service.answer(service.held[-1])
        assert (await wire.reply()).document["position"] == position
        if position == 1:
            assert (await wire.reply()).document == {"status": "alive"}


async def test_a_client_that_hangs_up_cancels_its_step(bare: Wire, service: FakeService) -> None:
    service.is_held = True
    bare.send(request(STEP, TEXT))
    await until(lambda: len(service.held) == 1)
    bare.hang_up()
    await until(service.held[0].cancelled)


def test_an_answer_that_its_client_does_not_wait_for_is_nobodys_error(app: FastAPI, service: FakeService) -> None:
    """The client leaves when its step is done and its answer is about to be written. On uvloop, which minds that."""
    failures: list[dict[str, object]] = []

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with running(app, service) as server, Wire(server) as wire:
            service.is_held = True
            wire.send(request(STEP, TEXT))
            await until(lambda: len(service.held) == 1)
            (connection,) = server.http.server_state.connections
            connection.transport.abort()
            service.answer(service.held[0])  # before the connection is told that it is lost
            await until(lambda: not server.http.server_state.connections)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(leave())
    assert not failures


async def test_a_client_that_hangs_up_in_mid_body_costs_nothing(bare: Wire, service: FakeService) -> None:
    bare.send(request(STEP, TEXT)[:-1])
    bare.hang_up()
    await asyncio.sleep(0)
    assert service.calls == []


async def test_a_connection_closes_when_its_client_wishes(bare: Wire) -> None:
    bare.send(request(STEP, TEXT, "Connection: close"))
    assert (await bare.reply()).fields["connection"] == "close"
    assert await bare.is_closed()


async def test_a_step_that_is_given_up_below_closes(bare: Wire, service: FakeService) -> None:
    service.is_held = True
    bare.send(request(STEP, TEXT))
    await until(lambda: len(service.held) == 1)
    service.held[0].cancel()
    assert await bare.is_closed()


async def test_a_server_that_ends_answers_first(server: Running, wire: Wire, service: FakeService) -> None:
    service.is_held = True
    wire.send(request(STEP, TEXT))
    await until(lambda: len(service.held) == 1)
    (connection,) = server.http.server_state.connections
    connection.shutdown()
    service.answer(service.held[0])
    reply = await wire.reply()
    assert (reply.status, reply.fields["connection"]) == (200, "close")
    assert await wire.is_closed()


async def test_a_server_that_ends_closes_idle_connections(server: Running, wire: Wire) -> None:
    wire.send(request(STEP, TEXT))
    await wire.reply()
    server.http.should_exit = True
    assert await wire.is_closed()
    await server.serving
