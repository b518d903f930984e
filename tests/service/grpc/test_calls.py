"""Every call but the stream: what reaches the core, what comes back, how it is cut short."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.clock import START
from tests.service.fake_core import OPENED, FakeCore, GenerateCall
from tests.service.grpc.conftest import Stubs
from tests.service.transports.asgi import Exchange, body_of, http_scope
from tidegate.api import Input, Sampling, SessionRequest, StepOptions
from tidegate.errors import InvalidInputError
from tidegate.observability.requests import RequestMetrics
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.grpc.calls import add_service
from tidegate.transports.grpc.framing import pack
from tidegate.transports.grpc.services import SERVICES, Predictor, Sessions
from tidegate.v1 import (
    models_pb2,
    predictor_pb2,
    predictor_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    types_pb2,
)
from tidegate.wire import SESSION_KEY
from tidegate.wire.errors import decode_status


async def ended(call: aio.UnaryUnaryCall[Any, Any]) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_models_are_listed_page_by_page(stubs: Stubs) -> None:
    first = await stubs.models.List(models_pb2.ListModelsRequest())
    assert [(model.name, model.version) for model in first.models] == [("echo", "1")]
    second = await stubs.models.List(models_pb2.ListModelsRequest(page_token=first.next_page_token))
    assert [(model.name, model.version) for model in second.models] == [("echo", "2")]
    assert second.next_page_token == ""


async def test_a_model_is_told_by_version_or_the_highest(stubs: Stubs) -> None:
    assert (await stubs.models.Get(models_pb2.GetModelRequest(model="echo"))).version == "2"
    assert (await stubs.models.Get(models_pb2.GetModelRequest(model="echo", version="1"))).version == "1"


async def test_reload_tells_what_it_did(stubs: Stubs) -> None:
    reply = await stubs.models.Reload(models_pb2.ReloadRequest())
    assert reply.loaded == ["echo/3"]
    assert reply.removed == ["echo/1"]
    assert [(each.bundle, each.reason) for each in reply.refused] == [("broken/1", "CHECKSUM_MISMATCH")]


async def test_predict(stubs: Stubs, service: FakeCore) -> None:
    sequences = [types_pb2.Input(text="ab"), types_pb2.Input(tokens=[5, 6, 7])]
    request = predictor_pb2.PredictRequest(model="echo", sequences=sequences, top=2, every_step=True)
    reply = await stubs.predictor.Predict(request)
    asked = [Input(text="ab"), Input(tokens=[5, 6, 7])]
    assert service.predicted == [("echo", None, asked, StepOptions(2, every_step=True))]
    assert [prediction.length for prediction in reply.predictions] == [2, 3]
    last = reply.predictions[1]
    assert [[each.id for each in row.candidates] for row in last.next] == [[5, 6], [6, 7], [7, 8]]
    assert last.surprise.mean == 2.0
    assert last.surprise.steps == [1.0, 2.0, 3.0]


async def test_a_bad_sequence_is_named_by_its_index(stubs: Stubs) -> None:
    sequences = [types_pb2.Input(text="ab"), types_pb2.Input()]
    error = decode_status(await ended(stubs.predictor.Predict(predictor_pb2.PredictRequest(sequences=sequences))))
    assert isinstance(error, InvalidInputError)
    assert error.message.startswith("sequence 1: ")
    assert (error.reason, error.details) == ("EMPTY_SEQUENCE", {"sequence": "1"})


async def test_generate_streams_tokens_then_the_end(stubs: Stubs, service: FakeCore) -> None:
    request = predictor_pb2.GenerateRequest(model="echo", text="xy", max_tokens=2, seed=7, stop=["z"])
    events = [event async for event in stubs.predictor.Generate(request)]
    assert [(event.token.id, event.token.text, event.token.position) for event in events[:2]] == [
        (0, "a", 3),
        (1, "b", 4),
    ]
    done = events[2].done
    assert (done.text, done.finish_reason, done.position) == ("ab", "length", 4)
    assert done.tokens == [0, 1]
    asked = service.generations[0]
    assert (asked.prompt, asked.sampling) == (Input(text="xy"), Sampling(max_tokens=2, seed=7, stop=("z",)))


async def test_a_session_s_life(stubs: Stubs, service: FakeCore) -> None:
    opening = sessions_pb2.OpenRequest(model="echo", id="mine", ttl_seconds=60, seed=0)
    opened = await stubs.sessions.Open(opening)
    assert service.opened == [SessionRequest("echo", ttl_seconds=60, id="mine", seed=0)]
    assert (opened.id, opened.model, opened.position, opened.state_bytes) == ("mine", "echo", 0, 128)
    assert opened.created_at.ToMicroseconds() / 1e6 == OPENED
    assert opened.expires_at.ToMicroseconds() / 1e6 == OPENED + 60
    reply = await stubs.sessions.Step(sessions_pb2.StepRequest(session="mine", tokens=[4, 9], position=0))
    assert (reply.session, reply.position) == ("mine", 2)
    assert [each.id for each in reply.prediction.next[0].candidates] == [9]
    assert (await stubs.sessions.Get(sessions_pb2.GetSessionRequest(session="mine"))).position == 2
    await stubs.sessions.Close(sessions_pb2.CloseRequest(session="mine"))
    await stubs.sessions.Close(sessions_pb2.CloseRequest(session="mine"))
    assert (await stubs.sessions.List(sessions_pb2.ListSessionsRequest())).sessions == []


async def test_sessions_are_listed_page_by_page(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a", "b", "c")
    first = await stubs.sessions.List(sessions_pb2.ListSessionsRequest(limit=2))
    second = await stubs.sessions.List(sessions_pb2.ListSessionsRequest(limit=2, page_token=first.next_page_token))
    assert [session.id for session in (*first.sessions, *second.sessions)] == ["a", "b", "c"]
    assert not first.sessions[0].HasField("expires_at")


async def test_generate_on_a_session(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    request = sessions_pb2.SessionGenerateRequest(session="a", tokens=[1, 2], position=0, max_tokens=1, temperature=0)
    events = [event async for event in stubs.sessions.Generate(request)]
    assert [event.WhichOneof("event") for event in events] == ["token", "done"]
    assert service.sessions["a"].position == 3
    asked = service.generations[0]
    assert asked[:3] == GenerateCall(Input(tokens=[1, 2]), Sampling(max_tokens=1, temperature=0), 0, None)[:3]


async def test_a_generation_needs_no_prompt(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    assert [event async for event in stubs.sessions.Generate(sessions_pb2.SessionGenerateRequest(session="a"))]
    assert (service.generations[0].prompt, service.generations[0].position) == (None, None)
    assert service.generations[0].sampling == Sampling()


async def test_the_session_may_stand_in_the_metadata(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("routed")
    reply = await stubs.sessions.Step(
        sessions_pb2.StepRequest(text="x"), metadata=aio.Metadata((SESSION_KEY, "routed"))
    )
    assert (reply.session, reply.position) == ("routed", 1)


async def test_a_step_without_a_session_is_refused(stubs: Stubs) -> None:
    error = decode_status(await ended(stubs.sessions.Step(sessions_pb2.StepRequest(text="x"))))
    assert isinstance(error, InvalidInputError)


@pytest.mark.parametrize("value", [b"caf\xe9", "caf\u00e9".encode(), b"\xff\xfe", b"\xed\xa0\xbd"])
@pytest.mark.parametrize("method", ["Sessions/Get", "Sessions/Step", "Sessions/Close", "Predictor/Stream"])
async def test_metadata_may_be_any_bytes(service: FakeCore, method: str, value: bytes) -> None:
    """Stock clients do not send such: whoever writes HTTP/2 by hand does."""
    adapter, calls = GrpcAdapter(), RequestMetrics(service.clock)
    add_service(sessions_pb2_grpc.add_SessionsServicer_to_server, Sessions(service, calls), adapter)
    add_service(predictor_pb2_grpc.add_PredictorServicer_to_server, Predictor(service, calls), adapter)
    fields = [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (SESSION_KEY.encode(), value)]
    exchange = Exchange(http_scope(f"/tidegate.v1.{method}", fields), body_of([pack(b"")]))
    await exchange.run(adapter)
    assert exchange.trailers[b"grpc-status"] == b"%d" % grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_the_client_s_deadline_reaches_the_core(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    await stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text="x"), timeout=1000)
    service.time.now += 50
    await stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text="x"))
    with_deadline, without = (step.deadline for step in service.steps)
    assert with_deadline is not None
    # gRPC rounds a timeout up to few digits on the wire: 1000.01 s travel as 1010 s.
    assert START + 900 < with_deadline <= START + 1010
    assert without == START + 50 + service.settings.request_timeout


async def test_a_call_that_its_client_cancels_is_cancelled_in_the_core(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    service.is_holding = True
    calls: list[Any] = [
        stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text="x")),
        stubs.predictor.Predict(predictor_pb2.PredictRequest(model="echo", sequences=[types_pb2.Input(text="x")])),
    ]
    assert {await service.submitted.get() for _ in calls} == {"a", "echo"}
    for call in calls:
        call.cancel()
    assert {await service.cancelled.get() for _ in calls} == {"a", "echo"}


async def test_a_generation_that_its_client_leaves_is_cancelled_in_the_core(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    service.is_holding = True
    generations: list[Any] = [
        stubs.predictor.Generate(predictor_pb2.GenerateRequest(model="echo", text="x")),
        stubs.sessions.Generate(sessions_pb2.SessionGenerateRequest(session="a", text="x")),
    ]
    for generation in generations:
        assert isinstance(await generation.read(), types_pb2.GenerateReply)
        await service.submitted.get()
        generation.cancel()
    assert {await service.cancelled.get() for _ in generations} == {"a", "echo"}


async def test_a_vanished_connection_cancels_the_call(service: FakeCore, channel: aio.Channel, stubs: Stubs) -> None:
    service.add_sessions("a")
    service.is_holding = True
    call = stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text="x"))
    await service.submitted.get()
    await channel.close(None)
    assert await service.cancelled.get() == "a"
    assert call.done()


async def test_an_oversized_message_is_refused(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    text = "x" * (5 * 1024 * 1024)
    error = await ended(stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text=text)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert decode_status(error).reason == "TOO_LARGE"
    assert (await stubs.sessions.Step(sessions_pb2.StepRequest(session="a", text="x"))).position == 1


async def test_a_stock_client_finds_the_services_by_reflection(channel: aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    async for reply in call:
        names = {service.name for service in reply.list_services_response.service}
        assert names == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert set(SERVICES) == {"tidegate.v1.Models", "tidegate.v1.Predictor", "tidegate.v1.Sessions"}


@pytest.mark.parametrize("name", ["", *SERVICES])
async def test_health_is_told_for_each_service(channel: aio.Channel, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
