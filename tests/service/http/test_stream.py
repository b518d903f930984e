"""The WebSocket of a session: order, pipelining, errors that end nothing, and the ends: client, error, drain."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from fastapi import FastAPI

from tests.clock import START
from tests.service.http.scripted import PREDICTION, PREDICTION_JSON, SESSION_JSON, ScriptedCore, Socket
from tidegate import errors
from tidegate.api import Input, SessionRequest, StepOptions
from tidegate.config import load_settings
from tidegate.limits import MAX_IN_FLIGHT
from tidegate.transports.http.app import create_app
from tidegate.transports.http.stream import Streams
from tidegate.v1.predictor_pb2 import StreamRequest
from tidegate.v1.sessions_pb2 import StepRequest
from tidegate.wire.predictions import decode_step

PATH = "/v1/sessions/s-1/stream"


def streams_of(app: FastAPI) -> Streams:
    streams = app.state.streams
    assert isinstance(streams, Streams)
    return streams


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10 * MAX_IN_FLIGHT):
        await asyncio.sleep(0)


async def test_each_frame_is_answered(app: FastAPI, service: ScriptedCore) -> None:
    async with Socket(app, PATH) as socket:
        socket.send({"text": "R", "position": 3, "top": 2, "every_step": True})
        assert await socket.answer() == {"session": "s-1", "position": 1, "prediction": PREDICTION_JSON}
    assert service.calls == [("get", "s-1"), ("step", "s-1", Input(text="R"), StepOptions(2, True), 3)]


async def test_binary_frames_hold_json_too(app: FastAPI) -> None:
    async with Socket(app, PATH) as socket:
        socket.send_raw(bytes=b'{"text": "R"}')
        assert (await socket.answer())["position"] == 1


async def test_a_binary_frame_is_a_message_of_the_stream_and_so_is_its_answer(
    app: FastAPI, service: ScriptedCore
) -> None:
    """Without a session it is about the path's, or the one of the message before."""
    async with Socket(app, PATH) as socket:
        for name in ("", "s-2", ""):
            request = StreamRequest(step=StepRequest(session=name, text="R", position=3, top=2))
            socket.send_raw(bytes=request.SerializeToString())
        replies = [await socket.message() for _ in range(3)]
    assert [reply.step.position for reply in replies] == [1, 2, 3]
    assert decode_step(replies[0].step, every_step=False).prediction == PREDICTION
    assert service.calls[1:] == [("step", name, Input(text="R"), StepOptions(2), 3) for name in ("s-1", "s-2", "s-2")]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [(b"\xff", "BAD_MESSAGE"), (b"", "INVALID_INPUT"), (b"\x0a\x05\x0a\x03s-1", "EMPTY_SEQUENCE")],
)
async def test_a_bad_message_is_answered_by_one_and_the_stream_goes_on(app: FastAPI, frame: bytes, reason: str) -> None:
    async with Socket(app, PATH) as socket:
        socket.send_raw(bytes=frame)
        socket.send({"text": "R"})
        assert (await socket.message()).error.reason == reason
        assert (await socket.answer())["position"] == 1


async def test_a_message_over_the_limit_is_refused_alone() -> None:
    service = ScriptedCore(load_settings({"max_message_mb": 0.001}))
    async with Socket(create_app(service), PATH) as socket:
        socket.send_raw(bytes=StreamRequest(step=StepRequest(text="R" * 1100)).SerializeToString())
        socket.send({"text": "R"})
        assert (await socket.message()).error.reason == "TOO_LARGE"
        assert (await socket.answer())["position"] == 1


async def test_answers_of_all_kinds_keep_the_order_of_their_frames(app: FastAPI, service: ScriptedCore) -> None:
    service.is_holding = True
    message = StreamRequest(step=StepRequest(text="R")).SerializeToString()
    async with Socket(app, PATH) as socket:
        socket.send({"text": "R"})
        socket.send_raw(bytes=message)
        socket.send_raw(bytes=b"\xff")
        socket.send({"text": "R"})
        socket.send_raw(text="{")
        await settle()
        for future in reversed(service.held):
            service.answer(future)
        assert (await socket.answer())["position"] == 1
        assert (await socket.message()).step.position == 2
        assert (await socket.message()).error.reason == "BAD_MESSAGE"
        assert (await socket.answer())["position"] == 3
        assert (await socket.answer())["reason"] == "INVALID_JSON"


async def test_the_first_text_frame_opens_the_session_of_the_others(app: FastAPI, service: ScriptedCore) -> None:
    service.is_holding = True
    async with Socket(app, "/v1/stream") as socket:
        socket.send({"model": "tiny", "durable": True, "id": "mine"})
        socket.send({"text": "R"})
        socket.send_raw(bytes=StreamRequest(step=StepRequest(text="S")).SerializeToString())
        assert await socket.answer() == SESSION_JSON
        await settle()
        for future in service.held:
            service.answer(future)
        assert (await socket.answer())["position"] == 1
        assert (await socket.message()).step.position == 2
    assert service.calls == [
        ("open", SessionRequest("tiny", durable=True, id="mine")),
        ("step", "s-1", Input(text="R"), StepOptions(), None),
        ("step", "s-1", Input(text="S"), StepOptions(), None),
    ]


async def test_messages_of_many_sessions_need_none_to_be_opened(app: FastAPI, service: ScriptedCore) -> None:
    async with Socket(app, "/v1/stream") as socket:
        for name in ("", "s-1", "s-2"):
            socket.send_raw(bytes=StreamRequest(step=StepRequest(session=name, text="R")).SerializeToString())
        assert "must name one" in (await socket.message()).error.message
        assert [(await socket.message()).step.position for _ in range(2)] == [1, 2]
    assert [call[1] for call in service.calls] == ["s-1", "s-2"]


@pytest.mark.parametrize(
    ("frame", "error", "status"),
    [
        ('{"model": "tiny"}', errors.NotFoundError("no such model", reason="UNKNOWN_MODEL"), 404),
        ('{"model": "tiny"}', ZeroDivisionError("secret"), 500),
        ('{"text": "R"}', None, 400),
        ("{", None, 400),
    ],
)
async def test_a_session_that_cannot_be_opened_ends_the_stream(
    app: FastAPI, service: ScriptedCore, frame: str, error: Exception | None, status: int
) -> None:
    """What came before it is answered."""
    service.is_holding = True
    async with Socket(app, "/v1/stream") as socket:
        socket.send_raw(bytes=StreamRequest(step=StepRequest(session="s-2", text="R")).SerializeToString())
        await settle()
        service.error = error
        socket.send_raw(text=frame)
        socket.send({"model": "tiny"})
        await settle()
        service.answer(service.held[0])
        assert (await socket.message()).step.position == 1
        document = await socket.answer()
        assert document["status"] == status
        reason = document["reason"]
        assert await socket.receive() == {"type": "websocket.close", "code": 4000 + status, "reason": reason}


@pytest.mark.parametrize("who", ["service", "streams"])
async def test_nothing_is_opened_on_a_server_that_drains(app: FastAPI, service: ScriptedCore, who: str) -> None:
    if who == "service":
        service.is_draining = True
    else:
        await streams_of(app).drain()
    async with Socket(app, "/v1/stream") as socket:
        assert (await socket.answer())["reason"] == "DRAINING"
        assert (await socket.receive())["code"] == 1001
    assert service.calls == []


@pytest.mark.parametrize("path", ["/v1/streams", "/v1/sessions/a/b/stream", "/", "/v1/sessions//stream"])
async def test_there_are_no_other_websockets(app: FastAPI, path: str) -> None:
    socket = Socket(app, path)
    assert await socket.receive() == {"type": "websocket.close"}
    await socket.task


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["tidegate.json"], "tidegate.json"),
        (["graphql-ws", "tidegate.json"], "tidegate.json"),
        (["tidegate.f32", "tidegate.json"], "tidegate.json"),
        (["graphql-ws"], None),
    ],
)
async def test_the_first_subprotocol_that_fits_is_spoken(app: FastAPI, offered: list[str], chosen: str | None) -> None:
    """The model takes tokens."""
    async with Socket(app, PATH, subprotocols=offered) as socket:
        assert socket.subprotocol == chosen
        socket.send({"text": "R"})
        assert (await socket.answer())["position"] == 1


async def test_a_model_of_tokens_has_no_stream_of_floats(app: FastAPI, service: ScriptedCore) -> None:
    async with Socket(app, PATH, subprotocols=["tidegate.f32"]) as socket:
        assert socket.subprotocol == "tidegate.f32"
        assert (await socket.answer())["reason"] == "NOT_OF_FLOATS"
        assert (await socket.receive())["code"] == 4412
    async with Socket(app, "/v1/stream", subprotocols=["tidegate.f32"]) as socket:
        socket.send({"model": "tiny"})
        assert (await socket.answer())["reason"] == "NOT_OF_FLOATS"
        assert (await socket.receive())["code"] == 4412
    assert "open" not in [call[0] for call in service.calls]


async def test_numbers_before_a_session_is_open_end_the_stream(app: FastAPI) -> None:
    async with Socket(app, "/v1/stream", subprotocols=["tidegate.f32"]) as socket:
        socket.send_raw(bytes=bytes(8))
        assert "must open one" in (await socket.answer())["detail"]
        assert (await socket.receive())["code"] == 4400


async def test_pipelined_frames_are_submitted_in_order_before_the_first_answer(
    app: FastAPI, service: ScriptedCore
) -> None:
    service.is_holding = True
    async with Socket(app, PATH) as socket:
        for token in range(5):
            socket.send({"tokens": [token]})
        await settle()
        assert [call[2].tokens for call in service.calls[1:]] == [[0], [1], [2], [3], [4]]
        for future in reversed(service.held):
            service.answer(future)
        assert [(await socket.answer())["position"] for _ in range(5)] == [1, 2, 3, 4, 5]


async def test_frames_in_flight_are_bounded(app: FastAPI, service: ScriptedCore) -> None:
    service.is_holding = True
    async with Socket(app, PATH) as socket:
        for _ in range(MAX_IN_FLIGHT + 5):
            socket.send({"text": "R"})
        await settle()
        assert len(service.held) == MAX_IN_FLIGHT
        service.answer(service.held[0])
        await settle()
        assert len(service.held) == MAX_IN_FLIGHT + 1
        for future in service.held[1:]:
            service.answer(future)
        await settle()


@pytest.mark.parametrize(
    ("frame", "status", "reason"),
    [
        ({"text": '{"text": '}, 400, "INVALID_JSON"),
        ({"text": "[]"}, 400, "INVALID_INPUT"),
        ({"text": '{"text": "R", "foo": 1}'}, 400, "INVALID_INPUT"),
        ({"text": ""}, 400, "INVALID_JSON"),
    ],
)
async def test_a_bad_frame_is_answered_and_the_stream_goes_on(
    app: FastAPI, frame: dict[str, Any], status: int, reason: str
) -> None:
    async with Socket(app, PATH) as socket:
        socket.send_raw(**frame)
        socket.send({"text": "R"})
        document = await socket.answer()
        assert (document["status"], document["reason"]) == (status, reason)
        assert (await socket.answer())["position"] == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(errors.PositionConflictError("at 6", position=6), 409), (ZeroDivisionError("secret"), 500)],
)
async def test_an_error_of_a_step_is_its_answer(
    app: FastAPI, service: ScriptedCore, error: Exception, status: int
) -> None:
    """Whether the call raises it or its future brings it."""
    service.is_holding = True
    async with Socket(app, PATH) as socket:
        socket.send({"text": "a"})
        await settle()
        service.error = error
        socket.send({"text": "b"})
        await settle()
        service.error = None
        socket.send({"text": "c"})
        await settle()
        first, third = service.held
        first.set_exception(error)
        service.answer(third)
        failed = [await socket.answer(), await socket.answer()]
        assert [document["status"] for document in failed] == [status, status]
        assert "secret" not in str(failed)
        assert (await socket.answer())["position"] == 2


async def test_a_frame_over_the_limit_is_refused_alone() -> None:
    service = ScriptedCore(load_settings({"max_message_mb": 0.001}))
    async with Socket(create_app(service), PATH) as socket:
        socket.send({"text": "R" * 1100})
        socket.send({"text": "R"})
        assert (await socket.answer())["reason"] == "TOO_LARGE"
        assert (await socket.answer())["position"] == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFoundError("no such session", reason="UNKNOWN_SESSION"), 4404),
        (errors.SessionEndedError("over", reason="SESSION_EVICTED"), 4410),
        (errors.FailedPreconditionError("elsewhere", reason="NOT_ON_THIS_REPLICA"), 4412),
        (ZeroDivisionError("secret"), 4500),
    ],
)
async def test_a_stream_that_cannot_start_says_why_and_closes(
    app: FastAPI, service: ScriptedCore, error: Exception, code: int
) -> None:
    service.error = error
    async with Socket(app, PATH) as socket:
        document = await socket.answer()
        assert document["status"] == code - 4000
        assert await socket.receive() == {"type": "websocket.close", "code": code, "reason": document["reason"]}


async def test_the_clients_timeout_is_for_each_frame(app: FastAPI, service: ScriptedCore) -> None:
    async with Socket(app, PATH, headers=[(b"tidegate-timeout", b"1000000")]) as socket:
        service.time.now += 50
        socket.send({"text": "R"})
        await socket.answer()
    assert service.deadlines[-1] == START + 50 + 1_000_000


async def test_a_bad_timeout_closes(app: FastAPI) -> None:
    async with Socket(app, PATH, headers=[(b"tidegate-timeout", b"soon")]) as socket:
        assert (await socket.answer())["reason"] == "INVALID_INPUT"
        assert (await socket.receive())["code"] == 4400


async def test_a_client_that_leaves_cancels_what_is_in_flight(app: FastAPI, service: ScriptedCore) -> None:
    service.is_holding = True
    async with Socket(app, PATH) as socket:
        for _ in range(3):
            socket.send({"text": "R"})
        await settle()
    assert [future.cancelled() for future in service.held] == [True, True, True]
    assert len(streams_of(app).open) == 0


async def test_drain_answers_what_is_in_flight_then_closes(app: FastAPI, service: ScriptedCore) -> None:
    service.is_holding = True
    async with Socket(app, PATH) as socket:
        socket.send({"text": "R"})
        await settle()
        draining = asyncio.create_task(streams_of(app).drain())
        await settle()
        socket.send({"text": "too late"})
        await settle()
        assert not draining.done()
        assert len(service.held) == 1
        service.answer(service.held[0])
        assert (await socket.answer())["position"] == 1
        assert (await socket.answer())["reason"] == "DRAINING"
        assert await socket.receive() == {"type": "websocket.close", "code": 1001, "reason": "DRAINING"}
        await draining
    assert len(streams_of(app).open) == 0


async def test_drain_ends_idle_streams_at_once(app: FastAPI) -> None:
    async with Socket(app, PATH) as one, Socket(app, PATH) as two:
        await settle()
        await streams_of(app).drain()
        for socket in (one, two):
            assert (await socket.answer())["reason"] == "DRAINING"
            assert (await socket.receive())["code"] == 1001


async def test_only_the_streams_of_the_tasks_that_are_told_end(app: FastAPI) -> None:
    async with Socket(app, PATH) as one, Socket(app, PATH) as two:
        await settle()
        streams_of(app).open.end({one.task})
        assert (await one.answer())["reason"] == "DRAINING"
        assert (await one.receive())["code"] == 1001
        two.send({"text": "R"})
        assert (await two.answer())["position"] == 1


async def test_drain_without_streams_is_done(app: FastAPI) -> None:
    await streams_of(app).drain()


@pytest.mark.parametrize("who", ["service", "streams"])
async def test_no_stream_starts_on_a_server_that_drains(app: FastAPI, service: ScriptedCore, who: str) -> None:
    if who == "service":
        service.is_draining = True
    else:
        await streams_of(app).drain()
    async with Socket(app, PATH) as socket:
        assert (await socket.answer())["reason"] == "DRAINING"
        assert (await socket.receive())["code"] == 1001


@pytest.mark.parametrize("end", ["leaves", "drain", "cannot open"])
async def test_nothing_keeps_a_stream_that_has_ended(app: FastAPI, service: ScriptedCore, end: str) -> None:
    """No cycle that would wait for the garbage collector with the frames in it."""
    service.is_holding = True
    gc.disable()
    try:
        async with Socket(app, "/v1/stream") as socket:
            await settle()
            service.error = errors.NotFoundError("no such model") if end == "cannot open" else None
            known = [weakref.ref(stream) for stream in streams_of(app).open]
            socket.send({"model": "tiny"})
            await socket.answer()
            socket.send({"text": "R"})
            await settle()
            if end == "drain":
                draining = asyncio.create_task(streams_of(app).drain())
                await settle()
                service.answer(service.held[0])
                await draining
                del draining
        assert [stream() for stream in known] == [None]
    finally:
        gc.enable()
