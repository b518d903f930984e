"""Spans of a request and of what its work went through, as an exporter gets them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.clock import EPOCH, START, ManualClock
from tests.service.engine.house import house
from tidegate.clock import Clock
from tidegate.observability.requests import RequestRecorder
from tidegate.observability.tracing import OtelTracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class TraceSpan:
    """Requests whose spans are kept."""

    def __init__(self, clock: Clock | None = None) -> None:
        clock = clock or ManualClock().clock()
        self.exporter = InMemorySpanExporter()
        self.tracing = OtelTracing(self.exporter, "here", clock)
        self.requests = RequestRecorder(clock, None, self.tracing)

    async def spans(self) -> dict[str, ReadableSpan]:
        await self.tracing.stop()
        return {span.name: span for span in self.exporter.get_finished_spans()}


async def test_a_request_is_a_span_below_its_client_s() -> None:
    traced = TraceSpan()
    begun = traced.requests.begin([("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "seven")])
    assert begun.span is not None
    assert begun.span.trace_id == TRACE
    assert dict(begun.span.headers())["traceparent"].startswith(f"00-{TRACE}-")
    traced.requests.method("http", "Step").end(begun, "aborted", "s-1")
    span = (await traced.spans())["http Step"]
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.kind is SpanKind.SERVER
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {}) == {
        "tidegate.interface": "http",
        "tidegate.method": "Step",
        "tidegate.outcome": "aborted",
        "tidegate.request": "seven",
        "tidegate.session": "s-1",
    }
    assert span.resource.attributes["service.name"] == "tidegate"
    assert span.resource.attributes["service.instance.id"] == "here"


async def test_a_trace_that_is_not_sampled_costs_no_span() -> None:
    traced = TraceSpan()
    begun = traced.requests.begin([("traceparent", f"00-{TRACE}-{PARENT}-00")])
    assert begun.span is None
    traced.requests.method("http", "Step").end(begun)
    assert await traced.spans() == {}


async def test_a_malformed_context_begins_a_trace_of_its_own() -> None:
    traced = TraceSpan()
    begun = traced.requests.begin([("traceparent", "what?")])
    traced.requests.method("grpc", "Step").end(begun)
    assert (await traced.spans())["grpc Step"].parent is None


async def test_work_is_traced_through_queue_and_run() -> None:
    async with house() as it:
        traced = TraceSpan(Clock(it.look, lambda: EPOCH + it.now))
        session = it.open()
        begun = traced.requests.begin()
        await it.step(session, "abc")
        traced.requests.method("grpc", "Step").end(begun)
    spans = await traced.spans()
    request, queue, run = (spans[name] for name in ("grpc Step", "queue", "run"))
    assert queue.parent is not None
    assert run.parent is not None
    assert queue.parent.span_id == run.parent.span_id == request.context.span_id
    times = [span.start_time for span in (request, queue, run)] + [span.end_time for span in (run, request)]
    assert times == sorted(times, key=lambda time: time or 0), "engine and request read one clock"
    assert run.attributes is not None
    assert (run.attributes["tidegate.steps"], run.attributes["tidegate.runs"], run.attributes["tidegate.rows"]) == (
        3, 1, 1,
    )  # fmt: skip
    assert "commit" not in spans


class Away:
    """A collector that never answers."""

    def __init__(self) -> None:
        self.is_shut_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.is_shut_down = True

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return False


async def test_spans_that_nobody_takes_are_dropped() -> None:
    """More than the queue holds: what is over is lost, and nobody waits."""
    exporter = Away()
    tracing = OtelTracing(exporter, "here", Clock())  # type: ignore[arg-type]
    requests = RequestRecorder(Clock(), None, tracing)
    method = requests.method("grpc", "Step")
    for _ in range(5_000):
        method.end(requests.begin())
    assert method.snapshot().outcomes == {"ok": 5_000}
    await tracing.stop()
    assert exporter.is_shut_down


async def test_spans_lie_within_each_other_on_the_wall_clock() -> None:
    clock = ManualClock()
    traced = TraceSpan(clock.clock())
    begun = traced.requests.begin()
    clock.now += 0.5
    traced.requests.method("grpc", "Step").end(begun)
    span = (await traced.spans())["grpc Step"]
    # A second of the epoch has 30 bits: those that are left to a float tell less than a microsecond.
    assert span.start_time == pytest.approx((EPOCH + START) * 1e9, abs=1000)
    assert span.end_time == pytest.approx((EPOCH + START + 0.5) * 1e9, abs=1000)
