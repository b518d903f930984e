"""Traces of a real server, as a collector gets them; and a collector that is away."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.bundles import write_tiny_bundle
from tests.servers import COMMAND, RunningServer, bare_environment, run_tidegate, serving
from tidegate.client import Client
from tidegate.v1 import sessions_pb2, sessions_pb2_grpc

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.spans += [span for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def tree(self, trace: str) -> dict[str, list[str]]:
        """Names of the spans of a trace, by the name of the span above, in the order of their beginnings."""
        spans = sorted((span for span in self.spans if span.trace_id.hex() == trace), key=_start)
        names = {span.span_id.hex(): span.name for span in spans}
        found: defaultdict[str, list[str]] = defaultdict(list)
        for span in spans:
            found[names.get(span.parent_span_id.hex(), "client")].append(span.name)
        return dict(found)


def _start(span: Any) -> int:
    return int(span.start_time_unix_nano)


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundles")
    return tmp_path / "bundles"


def open_session(server: RunningServer, *, durable: bool) -> str:
    reply = httpx.post(f"{server.http}/v1/sessions", json={"model": "tiny", "durable": durable})
    reply.raise_for_status()
    return str(reply.json()["id"])


def stop(server: RunningServer) -> None:
    server.process.terminate()
    assert server.wait() == 0


def test_a_step_over_http_is_traced_to_its_commit(collector: tuple[Collector, str], bundles: Path) -> None:
    spans, url = collector
    with serving(bundles, "--otlp", url, "--access-log") as server:
        session = open_session(server, durable=True)
        headers = {**TRACEPARENT, "x-request-id": "seven"}
        httpx.post(f"{server.http}/v1/sessions/{session}:step", json={"text": "Hello"}, headers=headers)
        stop(server)
    assert spans.tree(TRACE) == {"client": ["http Step"], "http Step": ["queue", "run", "commit"]}
    (line,) = [event for event in server.events if event.get("request") == "seven"]
    assert (line["interface"], line["method"], line["outcome"]) == ("http", "Step", "ok")
    assert (line["session"], line["trace"]) == (session, TRACE)
    assert "Hello" not in str(server.events)


def test_a_collector_on_this_machine_is_reached_by_no_proxy(collector: tuple[Collector, str], bundles: Path) -> None:
    spans, url = collector
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:1")
    with serving(bundles, "--otlp", url, environment={**bare_environment(), **proxies}) as server:
        httpx.post(f"{server.http}/v1/sessions", json={"model": "tiny"}, headers=TRACEPARENT)
        stop(server)
    assert spans.tree(TRACE) == {"client": ["http Open"]}


def test_context_comes_by_grpc_metadata_too(collector: tuple[Collector, str], bundles: Path) -> None:
    spans, url = collector
    with serving(bundles, "--otlp", url) as server:
        session = open_session(server, durable=False)
        with grpc.insecure_channel(server.grpc) as channel:
            request = sessions_pb2.StepRequest(session=session, text="Hello")
            sessions_pb2_grpc.SessionsStub(channel).Step(request, metadata=tuple(TRACEPARENT.items()))
        stop(server)
    assert spans.tree(TRACE) == {"client": ["grpc Step"], "grpc Step": ["queue", "run"]}


def test_a_step_that_another_worker_does_is_one_trace(collector: tuple[Collector, str], bundles: Path) -> None:
    spans, url = collector
    with serving(bundles, "--otlp", url, "--workers", "2") as server:
        session = open_session(server, durable=False)
        for _ in range(16):  # each connection goes to either worker
            httpx.post(f"{server.http}/v1/sessions/{session}:step", json={"text": "H"}, headers=TRACEPARENT)
        stop(server)
    tree = spans.tree(TRACE)
    assert tree["client"] == ["http Step"] * 16
    # Some came to the owner at once, the others by a call.
    assert 0 < tree["http Step"].count("grpc Step") < 16
    assert tree["http Step"].count("run") + tree["grpc Step"].count("run") == 16


def test_a_collector_that_is_away_slows_and_fails_nothing(bundles: Path) -> None:
    with serving(bundles, "--otlp", "http://127.0.0.1:1") as server:
        with Client(server.grpc) as client:
            session = client.open("tiny")
            with session.stream() as stream:
                for position in range(1, 5_001):  # more spans than the queue holds
                    assert stream.step("x").position == position
        stop(server)


def test_opentelemetry_s_own_variables_are_heard(collector: tuple[Collector, str], bundles: Path) -> None:
    spans, url = collector

    async def serve() -> None:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "serve", "--bundles", str(bundles), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
            "--data-dir", str(bundles.parent / "data"), stdout=asyncio.subprocess.PIPE,
            env={**bare_environment(), "OTEL_EXPORTER_OTLP_ENDPOINT": url},
        )  # fmt: skip
        assert process.stdout is not None
        while " ready " not in (line := (await process.stdout.readline()).decode()):
            assert line, "it ended before it was ready"
        http = line.partition("http=")[2].split()[0]
        async with httpx.AsyncClient() as client:
            await client.get(f"{http}/v1/models", headers=TRACEPARENT)
        process.terminate()
        await process.wait()

    asyncio.run(serve())
    assert spans.tree(TRACE) == {"client": ["http ListModels"]}


def test_what_is_no_url_is_refused(bundles: Path) -> None:
    refused = run_tidegate("serve", "--bundles", str(bundles), "--otlp", "somewhere:4317")
    assert refused.returncode == 2
    assert "--otlp: 'somewhere:4317' is not a URL" in refused.stderr


def test_without_traces_opentelemetry_is_not_imported() -> None:
    source = "import sys, tidegate.server, tidegate.cluster.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.split()
    assert "tidegate.observability.requests" in loaded
    # FastAPI imports the API, where that is installed.
    assert not [name for name in loaded if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
