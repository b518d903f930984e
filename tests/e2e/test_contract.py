"""One contract for both servers, h2corn and ``--asgi-server uvicorn``: every interface's main calls, errors, deadlines,
clients that leave, drain.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.bundles import write_tiny_bundle
from tests.servers import RunningServer, serving
from tidegate.api import GeneratedToken, GenerationDone
from tidegate.client import Client, Retry
from tidegate.errors import TidegateError, UnavailableError
from tidegate.oip import service_pb2, service_pb2_grpc
from tidegate.v1 import models_pb2, predictor_pb2, predictor_pb2_grpc, sessions_pb2, sessions_pb2_grpc

SERVERS = ["h2corn", "uvicorn"]
TEXT = "Hello World"
ENDLESS = 100_000
"""Tokens: seconds of work, which no test waits for."""

ONCE = Retry(attempts=1)
Body = dict[str, Any]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(root)
    return root


@pytest.fixture(scope="module", params=SERVERS)
def server(bundles: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    limits = ("--max-message-mb", "0.5", "--body-timeout", "1")
    with serving(bundles, "--asgi-server", request.param, *limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.grpc, retry=ONCE) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def surprises(client: Client) -> list[float]:
    """What each step of TEXT must cost, whichever way it goes."""
    surprise = client.predict("tiny", [TEXT], every_step=True).predictions[0].surprise
    assert surprise is not None
    assert surprise.steps is not None
    return list(surprise.steps)


def open_session(http: httpx.Client) -> str:
    return str(http.post("/v1/sessions", json={"model": "tiny"}).raise_for_status().json()["id"])


def stream_of(server: RunningServer, session: str) -> ClientConnection:
    return connect(f"{server.http.replace('http', 'ws', 1)}/v1/sessions/{session}/stream")


def events_of(reply: httpx.Response) -> Iterator[tuple[str, Body]]:
    """Server-sent events: their names and data."""
    name = ""
    for line in reply.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def generating(http: httpx.Client, tokens: int, path: str = "/v1/models/tiny:generate") -> Any:
    body = {"text": "A", "max_tokens": tokens, "seed": 7}
    return http.stream("POST", path, json=body, headers={"Accept": "text/event-stream"})


# Every interface's main calls.


def test_unary_calls_step_a_session(client: Client, surprises: list[float]) -> None:
    with client.open("tiny") as session:
        replies = [session.step(letter).prediction.surprise for letter in TEXT]
        assert session.refresh().position == len(TEXT)
    assert [reply.mean for reply in replies if reply is not None] == pytest.approx(surprises, rel=1e-4, abs=1e-5)
    assert [model.name for model in client.models()] == ["tiny"]


def test_a_grpc_stream_answers_in_order(client: Client, surprises: list[float]) -> None:
    with client.open("tiny") as session, session.stream() as stream:
        for letter in TEXT:
            stream.send(letter)
        replies = [stream.receive() for _ in TEXT]
    assert [reply.position for reply in replies] == list(range(1, len(TEXT) + 1))
    means = [reply.prediction.surprise.mean for reply in replies if reply.prediction.surprise is not None]
    assert means == pytest.approx(surprises, rel=1e-4, abs=1e-5)


def test_columns_carry_many_sessions(client: Client) -> None:
    sessions = [client.open("tiny") for _ in range(3)]
    with client.stream() as columns:
        assert len(columns.attach(sessions).positions) == 3
        result = columns.step([0, 1, 2], tokens=[40, 41, 42])
    assert list(result.positions) == [1, 1, 1]


def test_generation_is_the_same_over_grpc_json_and_events(client: Client, http: httpx.Client) -> None:
    *tokens, done = client.generate("tiny", "A", max_tokens=20, seed=7)
    assert isinstance(done, GenerationDone)
    text = "".join(token.text or "" for token in tokens if isinstance(token, GeneratedToken))
    whole = http.post("/v1/models/tiny:generate", json={"text": "A", "max_tokens": 20, "seed": 7}).json()
    with generating(http, 20) as reply:
        events = list(events_of(reply))
    assert [name for name, _ in events] == ["token"] * 20 + ["done"]
    assert "".join(event["text"] for _, event in events[:-1]) == text == whole["text"]


def test_http_steps_a_session(http: httpx.Client, surprises: list[float]) -> None:
    session = open_session(http)
    replies = [http.post(f"/v1/sessions/{session}:step", json={"text": letter}).json() for letter in TEXT]
    assert replies[-1]["position"] == len(TEXT)
    means = [reply["prediction"]["surprise"]["mean"] for reply in replies]
    assert means == pytest.approx(surprises, rel=1e-4, abs=1e-5)
    assert http.delete(f"/v1/sessions/{session}").is_success


def test_http_predicts_whole_sequences(http: httpx.Client, surprises: list[float]) -> None:
    body = {"sequences": [{"text": TEXT}], "every_step": True}
    reply = http.post("/v1/models/tiny:predict", json=body).json()
    assert reply["predictions"][0]["surprise"]["steps"] == pytest.approx(surprises, rel=1e-4, abs=1e-5)


def test_a_web_socket_answers_in_order(server: RunningServer, http: httpx.Client, surprises: list[float]) -> None:
    with stream_of(server, open_session(http)) as stream:
        for letter in TEXT:
            stream.send(json.dumps({"text": letter}))
        replies = [json.loads(stream.recv(30)) for _ in TEXT]
    means = [reply["prediction"]["surprise"]["mean"] for reply in replies]
    assert means == pytest.approx(surprises, rel=1e-4, abs=1e-5)


def test_a_web_socket_opens_a_session_and_takes_messages(server: RunningServer, surprises: list[float]) -> None:
    with connect(f"{server.http.replace('http', 'ws', 1)}/v1/stream") as stream:
        stream.send('{"model": "tiny"}')
        assert json.loads(stream.recv(30))["position"] == 0
        stream.send(predictor_pb2.StreamRequest(step=sessions_pb2.StepRequest(text="H")).SerializeToString())
        reply = predictor_pb2.StreamReply.FromString(stream.recv(30, decode=False)).step
        stream.send(b"\xff\xff")
        wrong = predictor_pb2.StreamReply.FromString(stream.recv(30, decode=False)).error
    assert reply.prediction.surprise.mean == pytest.approx(surprises[0], rel=1e-4, abs=1e-5)
    assert wrong.reason == "BAD_MESSAGE"


def test_a_body_may_be_compressed(http: httpx.Client) -> None:
    body = gzip.compress(b'{"sequences": [{"text": "Hello"}]}')
    reply = http.post("/v1/models/tiny:predict", content=body, headers={"Content-Encoding": "gzip"})
    assert reply.json()["predictions"][0]["length"] == 5


def infer_request(**parameters: Any) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="tiny", id="i")
    tensor = request.inputs.add(name="tokens", datatype="INT64", shape=[1, 1])
    tensor.contents.int64_contents.append(40)
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "string_param"
        setattr(request.parameters[name], kind, value)
    return request


def test_the_open_inference_protocol_infers_by_calls_streams_and_http(channel: Any, http: httpx.Client) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    called = stub.ModelInfer(infer_request(), timeout=30)
    sequence = [infer_request(sequence_id="c", sequence_start=start, sequence_end=not start) for start in (True, False)]
    streamed = list(stub.ModelStreamInfer(iter(sequence), timeout=30))
    body = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [40]}]}
    posted = http.post("/v2/models/tiny/infer", json=body).json()
    assert [message.error_message for message in streamed] == ["", ""]
    assert called.raw_output_contents == streamed[0].infer_response.raw_output_contents
    assert [output.name for output in called.outputs] == [output["name"] for output in posted["outputs"]]
    assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=30).live
    assert http.get("/v2/health/ready").status_code == 200


def test_probes_and_reflection_answer(channel: Any, http: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert http.get(path).status_code == http.head(path).status_code == 200
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING
    watching = stub.Watch(health_pb2.HealthCheckRequest(service="tidegate.v1.Predictor"), timeout=30)
    assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()
    services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {"tidegate.v1.Predictor", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services


def test_grpc_web_is_answered_over_http(http: httpx.Client) -> None:
    message = models_pb2.ListModelsRequest().SerializeToString()
    reply = http.post(
        "/tidegate.v1.Models/List",
        content=b"\0" + len(message).to_bytes(4, "big") + message,
        headers={"Content-Type": "application/grpc-web+proto"},
    )
    size = int.from_bytes(reply.content[1:5], "big")
    models = models_pb2.ListModelsReply.FromString(reply.content[5 : 5 + size]).models
    assert [model.name for model in models] == ["tiny"]
    assert b"grpc-status: 0" in reply.content[5 + size :].lower().replace(b"status:0", b"status: 0")


def count(http: httpx.Client, interface: str, method: str, outcome: str) -> float:
    """How many requests ended so."""
    labels = f'interface="{interface}",method="{method}",outcome="{outcome}"'
    lines = http.get("/metrics").text
    found = re.search(rf"^tidegate_requests_total\{{{labels}\}} (\S+)$", lines, re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def test_requests_of_all_interfaces_are_counted(server: RunningServer, http: httpx.Client, client: Client) -> None:
    ways = [("grpc", "Step"), ("http", "Step"), ("websocket", "Step")]
    before = [count(http, *way, "ok") for way in ways]
    session = open_session(http)
    client.session(session).step("H")
    http.post(f"/v1/sessions/{session}:step", json={"text": "H"}).raise_for_status()
    with stream_of(server, session) as stream:
        stream.send('{"text": "H"}')
        stream.recv(30)
    assert [count(http, *way, "ok") for way in ways] == [number + 1 for number in before]


# Errors, with their reasons.


def test_an_error_has_its_code_and_reason_over_every_interface(
    server: RunningServer, client: Client, http: httpx.Client
) -> None:
    reply = http.post("/v1/sessions/absent:step", json={"text": "H"})
    with pytest.raises(TidegateError) as caught:
        client.session("absent")
    with stream_of(server, "absent") as stream:
        framed = json.loads(stream.recv(30))
        with pytest.raises(ConnectionClosed) as closed:
            stream.recv(30)
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")
    assert reply.json()["reason"] == caught.value.reason == framed["reason"] == "UNKNOWN_SESSION"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4404


def test_a_position_that_is_not_the_sessions_is_a_conflict(channel: Any, http: httpx.Client) -> None:
    session = open_session(http)
    reply = http.post(f"/v1/sessions/{session}:step", json={"text": "H", "position": 3})
    request = sessions_pb2.StepRequest(session=session, text="H", position=3)
    stub = sessions_pb2_grpc.SessionsStub(channel)
    assert status_of(lambda: stub.Step(request, timeout=30)) == (grpc.StatusCode.ABORTED, reply.json()["reason"])
    assert (reply.status_code, reply.json()["reason"]) == (409, "POSITION_CONFLICT")


def status_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """The code that a call ends with, and its reason."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    for detail in () if status is None else status.details:
        detail.Unpack(info)
    return error.code(), info.reason


def test_a_malformed_message_is_the_clients_fault(channel: Any, http: httpx.Client) -> None:
    before = count(http, "grpc", "Predict", "invalid_argument")
    unary = channel.unary_unary("/tidegate.v1.Predictor/Predict")
    assert status_of(lambda: unary(b"\xff\xff", timeout=30)) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MESSAGE")
    stream = channel.stream_stream("/tidegate.v1.Predictor/Stream")
    (told,) = stream(iter([b"\xff\xff"]), timeout=30)
    assert predictor_pb2.StreamReply.FromString(told).error.reason == "BAD_MESSAGE"
    assert count(http, "grpc", "Predict", "invalid_argument") == before + 1
    reply = http.post("/v1/sessions", content=b'{"model": ')
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_JSON")


def test_a_message_that_is_too_large_is_refused(channel: Any, http: httpx.Client) -> None:
    request = predictor_pb2.PredictRequest(model="tiny", sequences=[predictor_pb2.PredictRequest().sequences.add()])
    request.sequences[0].text = "x" * (1 << 20)
    code, _ = status_of(lambda: predictor_pb2_grpc.PredictorStub(channel).Predict(request, timeout=30))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    reply = http.post("/v1/models/tiny:predict", json={"sequences": [{"text": "x" * (1 << 20)}]})
    assert (reply.status_code, reply.json()["reason"]) == (413, "TOO_LARGE")


def test_a_head_that_is_too_large_is_refused(channel: Any, http: httpx.Client) -> None:
    call = channel.unary_unary("/tidegate.v1.Models/List")
    code, _ = status_of(lambda: call(b"", timeout=30, metadata=[("x", "a" * 70_000)]))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    reply = http.get("/v1/models", headers={"X": "a" * 70_000})
    assert (reply.status_code, reply.headers["content-type"]) == (431, "application/problem+json")


def test_what_there_is_not_is_told(server: RunningServer, channel: Any, http: httpx.Client) -> None:
    absent = channel.unary_unary("/tidegate.v1.Predictor/Absent")
    assert status_of(lambda: absent(b"", timeout=30))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert http.get("/v1/absent").status_code == 404
    assert http.put("/v1/sessions").status_code == 405
    with pytest.raises(InvalidStatus) as caught, connect(f"{server.http.replace('http', 'ws', 1)}/v1/absent"):
        pass
    assert caught.value.response.status_code == 404


# Deadlines, and clients that leave.


def test_a_deadline_ends_a_request(channel: Any, http: httpx.Client) -> None:
    request = predictor_pb2.GenerateRequest(model="tiny", text="A", max_tokens=ENDLESS)
    stub = predictor_pb2_grpc.PredictorStub(channel)
    assert status_of(lambda: list(stub.Generate(request, timeout=0.2)))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    body = {"text": "A", "max_tokens": ENDLESS}
    reply = http.post("/v1/models/tiny:generate", json=body, headers={"Tidegate-Timeout": "0.2"})
    assert (reply.status_code, reply.json()["reason"]) == (504, "DEADLINE_EXCEEDED")


def test_a_body_that_does_not_come_ends_its_connection(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(server.http).port or 0), timeout=30) as half:
        half.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nhalf")
        reply = b"".join(iter(lambda: half.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 408")
    assert b'"BODY_TIMEOUT"' in reply


def leave_grpc(server: RunningServer) -> None:
    with Client(server.grpc, retry=ONCE) as client:
        next(client.generate("tiny", "A", max_tokens=ENDLESS))


def leave_events(server: RunningServer) -> None:
    with httpx.Client(base_url=server.http) as http, generating(http, ENDLESS) as reply:
        next(events_of(reply))


def leave_http(server: RunningServer) -> None:
    with httpx.Client(base_url=server.http) as http, contextlib.suppress(httpx.ReadTimeout):
        http.post("/v1/models/tiny:generate", json={"text": "A", "max_tokens": ENDLESS}, timeout=0.2)


@pytest.mark.parametrize(("interface", "leave"), [("grpc", leave_grpc), ("http", leave_events), ("http", leave_http)])
def test_a_client_that_leaves_cancels_its_request(
    server: RunningServer, http: httpx.Client, interface: str, leave: Callable[[RunningServer], None]
) -> None:
    before = count(http, interface, "Generate", "cancelled")
    leave(server)
    assert any(count(http, interface, "Generate", "cancelled") == before + 1 for _ in range(5000))


def test_a_client_that_leaves_its_web_socket_frees_the_session(server: RunningServer, http: httpx.Client) -> None:
    session = open_session(http)
    with stream_of(server, session) as stream:
        stream.send(json.dumps({"text": "x" * 20_000}))
        stream.socket.shutdown(socket.SHUT_RDWR)
    assert http.post(f"/v1/sessions/{session}:step", json={"text": "H"}).is_success


# Drain.


@pytest.mark.parametrize("kind", SERVERS)
def test_a_drain_answers_what_is_in_flight_and_refuses_what_is_new(bundles: Path, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(bundles, "--asgi-server", kind))
        client = stack.enter_context(Client(server.grpc, retry=ONCE))
        http, other = (stack.enter_context(httpx.Client(base_url=server.http, timeout=30)) for _ in range(2))
        session = open_session(http)
        frames = stack.enter_context(stream_of(server, session))
        with grpc.insecure_channel(server.grpc) as watching:
            health = health_pb2_grpc.HealthStub(watching).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(health).status == health_pb2.HealthCheckResponse.SERVING
            calls = client.generate("tiny", "A", max_tokens=5_000)
            tokens = [next(calls)]
            reply = stack.enter_context(generating(http, 5_000))
            events = events_of(reply)
            names = [next(events)[0]]
            frames.send('{"text": "Hello"}')
            server.tell(signal.SIGTERM)
            assert any(other.get("/readyz").json()["status"] == "draining" for _ in range(1000))
            with pytest.raises(UnavailableError) as caught:
                client.predict("tiny", ["A"])
            refused = other.post("/v1/models/tiny:predict", json={"sequences": [{"text": "A"}]})
            assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert json.loads(frames.recv(30))["position"] == 5
            assert json.loads(frames.recv(30))["reason"] == "DRAINING"
            tokens += calls
            names += [name for name, _ in events]
            # Neither a connection that is kept alive nor a call that goes on for ever holds the end up.
            assert server.wait() == 0
    assert isinstance(tokens[-1], GenerationDone)
    assert len(tokens) == 5_001
    assert names == ["token"] * 5_000 + ["done"]
    assert (refused.status_code, refused.json()["reason"]) == (503, "DRAINING")
    assert caught.value.reason == "DRAINING"
    assert {event["level"] for event in server.events} == {"info"}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_drain_that_is_cut_short_tells_who_still_waits(bundles: Path, kind: str) -> None:
    with serving(bundles, "--asgi-server", kind, "--drain-timeout", "0") as server, Client(server.grpc) as client:
        calls = client.generate("tiny", "A", max_tokens=ENDLESS)
        next(calls)
        with httpx.Client(base_url=server.http) as http, generating(http, ENDLESS) as reply:
            events = events_of(reply)
            next(events)
            server.tell(signal.SIGTERM)
            with pytest.raises(TidegateError):
                list(calls)
            name, last = list(events)[-1]
        assert server.wait() == 0
    assert (name, last["status"]) == ("error", 503)


def test_workers_of_the_fallback_answer_for_each_other(bundles: Path) -> None:
    """Those of h2corn are tests/e2e/test_workers.py's."""
    with serving(bundles, "--asgi-server", "uvicorn", "--workers", "2") as server:
        with httpx.Client(base_url=server.http, timeout=30) as http:
            session = open_session(http)
        path = f"{server.http}/v1/sessions/{session}:step"
        replies = [httpx.post(path, json={"text": letter}, timeout=30).json() for letter in TEXT]
        with Client(server.grpc, retry=ONCE) as client:
            assert client.session(session).info.position == len(TEXT)
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
    assert [reply["position"] for reply in replies] == list(range(1, len(TEXT) + 1))
