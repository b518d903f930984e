"""The bidirectional stream: order, overlap, errors in place, columns, cancellation, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from grpc import aio
from grpc.aio import EOF  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.clock import START
from tests.service.fake_core import FakeCore
from tests.service.grpc.conftest import Stubs
from tests.service.grpc_server import GrpcServer
from tidegate import errors
from tidegate.api import Input, StepOptions
from tidegate.limits import MAX_IN_FLIGHT, MAX_LANES
from tidegate.v1 import predictor_pb2, types_pb2
from tidegate.v1.predictor_pb2 import Attach, Columns, StreamReply, StreamRequest
from tidegate.v1.sessions_pb2 import StepRequest
from tidegate.wire import SESSION_KEY
from tidegate.wire.columns import decode_columns_reply
from tidegate.wire.errors import decode_error, decode_status

# The published type has no form without an iterator of requests.
Stream = Any
OpenStream = Callable[..., Stream]


@pytest.fixture
async def open_stream(stubs: Stubs) -> AsyncIterator[OpenStream]:
    opened = []

    def stream(**metadata: str) -> Stream:
        call: Any = stubs.predictor.Stream
        pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        opened.append(call(metadata=aio.Metadata(*pairs)))
        return opened[-1]

    yield stream
    for call in opened:
        call.cancel()


def step(session: str = "", *tokens: int, **fields: Any) -> StreamRequest:
    return StreamRequest(step=StepRequest(session=session, tokens=tokens, **fields))


async def ask(stream: Stream, request: StreamRequest) -> StreamReply:
    await stream.write(request)
    reply = await stream.read()
    assert isinstance(reply, StreamReply)
    return reply


async def attach(stream: Stream, *sessions: str, first: int = 0) -> predictor_pb2.Attached:
    return (await ask(stream, StreamRequest(attach=Attach(first_lane=first, sessions=sessions)))).attached


async def columns(stream: Stream, *lanes: int, **fields: Any) -> StreamReply:
    return await ask(stream, StreamRequest(columns=Columns(lanes=lanes, **fields)))


async def end_of(stream: Stream) -> errors.TidegateError:
    with pytest.raises(aio.AioRpcError) as caught:
        assert await stream.read() is EOF
    return decode_status(caught.value)


async def test_steps_are_answered(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    stream = open_stream()
    first = await ask(stream, step("a", 4, 7, position=0, top=2, every_step=True))
    assert (first.step.session, first.step.position) == ("a", 2)
    assert [[each.id for each in row.candidates] for row in first.step.prediction.next] == [[4, 5], [7, 8]]
    second = await ask(stream, StreamRequest(step=StepRequest(session="b", text="xyz")))
    assert (second.step.session, second.step.position) == ("b", 3)
    assert [call.options for call in service.steps] == [StepOptions(2, every_step=True), StepOptions()]


async def test_an_empty_session_is_the_one_before(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    stream = open_stream(tidegate_session="b")
    sessions = [(await ask(stream, step(name, 1))).step.session for name in ("", "a", "")]
    assert sessions == ["b", "a", "a"]
    assert SESSION_KEY == "tidegate-session"


async def test_a_stream_that_never_names_a_session_is_refused_and_goes_on(
    open_stream: OpenStream, service: FakeCore
) -> None:
    service.add_sessions("a")
    stream = open_stream()
    refused = await ask(stream, step("", 1))
    assert isinstance(decode_error(refused.error), errors.InvalidInputError)
    assert (await ask(stream, step("a", 1))).step.position == 1


async def test_pipelined_steps_overlap_and_are_answered_in_order(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    service.is_holding = True
    stream = open_stream()
    names = ["a", "b", "a", "a", "b"]
    for name in names:
        await stream.write(step(name, 1))
    # All are with the core before the first is answered.
    assert [await service.submitted.get() for _ in names] == names
    service.waiting.reverse()
    service.release()
    replies = [(await stream.read()).step for _ in names]
    assert [(reply.session, reply.position) for reply in replies] == [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)]


async def test_steps_in_flight_are_bounded(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a")
    service.is_holding = True
    stream = open_stream()
    for _ in range(MAX_IN_FLIGHT + 5):
        await stream.write(step("a", 1))
    for _ in range(MAX_IN_FLIGHT):
        await service.submitted.get()
    assert service.submitted.empty()
    assert len(service.steps) == MAX_IN_FLIGHT
    service.is_holding = False
    service.release()
    assert [(await stream.read()).step.position for _ in range(MAX_IN_FLIGHT + 5)][-1] == MAX_IN_FLIGHT + 5


@pytest.mark.parametrize("when", ["failures", "late_failures"])
async def test_an_error_stands_in_its_place_and_the_stream_goes_on(
    open_stream: OpenStream, service: FakeCore, when: str
) -> None:
    service.add_sessions("a")
    getattr(service, when)["a"] = [errors.OverloadedError("full", reason="QUEUE_FULL", retry_after=1.0)]
    stream = open_stream()
    await stream.write(step("a", 1))
    await stream.write(step("a", 2))
    error = decode_error((await stream.read()).error)
    assert isinstance(error, errors.OverloadedError)
    assert (error.message, error.reason, error.retry_after) == ("full", "QUEUE_FULL", 1.0)
    assert (await stream.read()).step.position == 1


async def test_a_position_conflict_tells_the_position(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a")
    error = decode_error((await ask(open_stream(), step("a", 1, position=9))).error)
    assert isinstance(error, errors.PositionConflictError)
    assert error.position == 0


@pytest.mark.parametrize("when", ["failures", "late_failures"])
async def test_an_unexpected_error_is_not_shown_and_the_stream_goes_on(
    open_stream: OpenStream, service: FakeCore, when: str
) -> None:
    service.add_sessions("a")
    getattr(service, when)["a"] = [ZeroDivisionError("secret")]
    stream = open_stream()
    refused = await ask(stream, step("a", 1))
    assert refused.error.reason == "INTERNAL"
    assert "secret" not in refused.error.message
    assert (await ask(stream, step("a", 1))).step.position == 1


EMPTY = {"nothing": StreamRequest(), "no steps": step("a"), "no lanes": StreamRequest(columns=Columns())}


@pytest.mark.parametrize("request_", EMPTY.values(), ids=EMPTY.keys())
async def test_an_empty_message_is_refused(open_stream: OpenStream, service: FakeCore, request_: StreamRequest) -> None:
    service.add_sessions("a")
    reply = await ask(open_stream(), request_)
    assert isinstance(decode_error(reply.error), errors.InvalidInputError)


async def test_half_closing_answers_what_is_in_flight_and_ends_well(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a")
    service.is_holding = True
    stream = open_stream()
    for _ in range(3):
        await stream.write(step("a", 1))
    await stream.done_writing()
    for _ in range(3):
        await service.submitted.get()
    service.release()
    assert [(await stream.read()).step.position for _ in range(3)] == [1, 2, 3]
    assert await stream.read() is EOF


async def test_a_client_that_cancels_cancels_its_steps_and_no_other(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("gone", "lane", "stays")
    leaving, staying = open_stream(), open_stream()
    await attach(leaving, "lane")
    service.is_holding = True
    await leaving.write(step("gone", 1))
    await leaving.write(step("gone", 1))
    await leaving.write(StreamRequest(columns=Columns(lanes=[0], tokens=[1])))
    await staying.write(step("stays", 1))
    for _ in range(4):
        await service.submitted.get()
    leaving.cancel()
    assert sorted([await service.cancelled.get() for _ in range(3)]) == ["gone", "gone", "lane"]
    service.release()
    assert (await staying.read()).step.position == 1
    assert service.cancelled.empty()


async def test_deadlines_of_a_stream(stubs: Stubs, service: FakeCore) -> None:
    """The client's for the whole stream, or the server's for each message."""
    service.add_sessions("a")
    start: Any = stubs.predictor.Stream
    for timeout in (1000, None):
        stream = start(timeout=timeout)
        await ask(stream, step("a", 1))
        service.time.now += 1
        await ask(stream, step("a", 1))
        stream.cancel()
    one, other, first, second = (call.deadline or 0 for call in service.steps)
    assert START + 900 < one == other < START + 1100
    limit = service.settings.request_timeout
    assert (first, second) == (START + 1 + limit, START + 2 + limit)


async def test_drain_answers_what_is_in_flight_then_ends_unavailable(
    open_stream: OpenStream, service: FakeCore, server: GrpcServer, channel: aio.Channel
) -> None:
    service.add_sessions("a")
    service.is_holding = True
    stream = open_stream()
    await stream.write(step("a", 1))
    await stream.write(step("a", 1))
    for _ in range(2):
        await service.submitted.get()
    draining = asyncio.create_task(server.drain())
    # A health check that is asked after the drain has begun makes sure that it has.
    health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    service.release()
    assert [(await stream.read()).step.position for _ in range(2)] == [1, 2]
    error = await end_of(stream)
    assert isinstance(error, errors.UnavailableError)
    assert error.reason == "DRAINING"
    await draining
    assert len(service.steps) == 2


async def test_drain_ends_an_idle_stream(open_stream: OpenStream, service: FakeCore, server: GrpcServer) -> None:
    service.add_sessions("a")
    stream = open_stream()
    await ask(stream, step("a", 1))
    await server.drain()
    assert (await end_of(stream)).reason == "DRAINING"


async def test_lanes_are_attached_with_their_positions(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    service.sessions["b"] = service.sessions["b"]._replace(position=5)
    attached = await attach(open_stream(), "a", "missing", "b", first=10)
    assert attached.first_lane == 10
    assert attached.positions == [0, 0, 5]
    assert [each.lane for each in attached.errors] == [11]
    assert isinstance(decode_error(attached.errors[0].error), errors.NotFoundError)


async def test_columns_step_every_lane(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b", "c")
    stream = open_stream()
    await attach(stream, "a", "b", "c")
    reply = await columns(stream, 2, 0, tokens=[30, 10], top=2)
    result = decode_columns_reply(reply.columns)
    assert (result.lanes, result.positions, result.counts) == ([2, 0], [1, 1], [1, 1])
    assert result.ids is not None
    assert result.ids.tolist() == [[30, 31], [10, 11]]
    assert result.probabilities is not None
    assert result.probabilities.tolist() == [[1.0, 0.5], [1.0, 0.5]]
    assert result.surprise is not None
    assert result.surprise.tolist() == [1.0, 1.0]
    assert [call[:2] for call in service.steps] == [("c", Input(tokens=[30])), ("a", Input(tokens=[10]))]


async def test_columns_of_several_steps_with_positions(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    stream = open_stream()
    await attach(stream, "a", "b")
    fields: dict[str, Any] = {"lengths": [1, 3], "tokens": [5, 6, 7, 8], "positions": [0, 0], "every_step": True}
    result = decode_columns_reply((await columns(stream, 0, 1, **fields)).columns)
    assert (result.positions, result.counts) == ([1, 3], [1, 3])
    assert result.ids is not None
    assert result.ids.tolist() == [[5], [6], [7], [8]]
    assert result.surprise is not None
    assert result.surprise.tolist() == [1.0, 1.0, 2.0, 3.0]
    assert [call.position for call in service.steps] == [0, 0]


async def test_columns_of_values(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    stream = open_stream()
    await attach(stream, "a", "b")
    values = types_pb2.Values(width=2, data=[1, 2, 3, 4, 5, 6])
    await columns(stream, 0, 1, lengths=[2, 1], values=values)
    found = [call.input.values for call in service.steps]
    assert [rows.tolist() for rows in found if rows is not None] == [[[1, 2], [3, 4]], [[5, 6]]]


async def test_a_lane_that_fails_fails_alone(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("good", "early", "late", "conflict")
    stream = open_stream()
    await attach(stream, "good", "early", "late", "conflict", "missing")
    service.failures["early"] = [errors.OverloadedError("full")]
    service.late_failures["late"] = [ZeroDivisionError("secret")]
    reply = await columns(stream, 0, 1, 2, 3, 4, tokens=[1, 2, 3, 4, 5], positions=[0, 0, 0, 8, 0])
    result = decode_columns_reply(reply.columns)
    assert (result.lanes, result.positions) == ([0], [1])
    assert {lane: error.reason for lane, error in result.errors.items()} == {
        1: "OVERLOADED",
        2: "INTERNAL",
        3: "POSITION_CONFLICT",
        4: "UNKNOWN_SESSION",
    }
    again = decode_columns_reply((await columns(stream, 0, 1, 2, tokens=[1, 2, 3])).columns)
    assert (again.positions, again.errors) == ([2, 1, 1], {})


BAD_LANES = {
    "unknown": {"lanes": [0, 9], "tokens": [1, 1]},
    "twice": {"lanes": [0, 0], "tokens": [1, 1]},
    "one session in two lanes": {"lanes": [0, 2], "tokens": [1, 1]},
    "two models": {"lanes": [0, 3], "tokens": [1, 1]},
    "no steps in a lane": {"lanes": [0, 1], "lengths": [2, 0], "tokens": [1, 1]},
}


@pytest.mark.parametrize("fields", BAD_LANES.values(), ids=BAD_LANES.keys())
async def test_invalid_lanes_fail_the_message_before_anything_is_stepped(
    open_stream: OpenStream, service: FakeCore, fields: dict[str, Any]
) -> None:
    service.add_sessions("a", "b")
    service.add_sessions("other", model="other")
    stream = open_stream()
    await attach(stream, "a", "b", "a", "other")
    reply = await ask(stream, StreamRequest(columns=Columns(**fields)))
    assert isinstance(decode_error(reply.error), errors.InvalidInputError)
    assert service.steps == []
    assert decode_columns_reply((await columns(stream, 0, 1, tokens=[1, 1])).columns).lanes == [0, 1]


async def test_many_lanes_are_attached_by_few_questions(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    names = ["a", *(f"z{number}" for number in range(598)), "b"]
    stream = open_stream()
    attached = await attach(stream, *names)
    assert service.asked == [256, 256, 88]
    assert len(attached.positions) == 600
    assert [each.lane for each in attached.errors] == list(range(1, 599))
    assert (await columns(stream, 0, 599, tokens=[1, 2])).columns.positions == [1, 1]


async def test_an_attachment_whose_errors_are_too_long_tells_them_in_short(
    open_stream: OpenStream, service: FakeCore
) -> None:
    service.add_sessions("a")
    service.settings = service.settings.model_copy(update={"max_message_mb": 0.01})
    names = [f"{number:060}" for number in range(128)]
    stream = open_stream()
    attached = await attach(stream, *names)
    assert {(each.error.reason, each.error.message) for each in attached.errors} == {("UNKNOWN_SESSION", "")}
    refused = await ask(stream, StreamRequest(attach=Attach(sessions=list(map(str, range(1000))))))
    assert refused.error.reason == "REPLY_TOO_LARGE"
    assert (await columns(stream, 0, tokens=[1])).columns.errors[0].error.reason == "UNKNOWN_SESSION"
    assert (await attach(stream, "a")).positions == [0]


async def test_a_lane_can_be_attached_anew(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    stream = open_stream()
    await attach(stream, "a")
    await attach(stream, "b")
    await columns(stream, 0, tokens=[1])
    assert [call.session for call in service.steps] == ["b"]


async def test_lanes_are_bounded(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a", "b")
    stream = open_stream()
    too_many = Attach(first_lane=MAX_LANES - 1, sessions=["a", "b"])
    refused = await ask(stream, StreamRequest(attach=too_many))
    assert isinstance(decode_error(refused.error), errors.InvalidInputError)
    assert (await attach(stream, "a", first=MAX_LANES - 1)).errors == []


async def test_pipelined_attach_and_columns_keep_their_order(open_stream: OpenStream, service: FakeCore) -> None:
    service.add_sessions("a")
    stream = open_stream()
    await stream.write(StreamRequest(attach=Attach(sessions=["a"])))
    await stream.write(StreamRequest(columns=Columns(lanes=[0], tokens=[1])))
    await stream.write(step("a", 2))
    kinds = [(await stream.read()).WhichOneof("message") for _ in range(3)]
    assert kinds == ["attached", "columns", "step"]
    assert service.sessions["a"].position == 2
