"""Traces by OpenTelemetry: a span a request, and below it what its work went through: queue, run, commit.

The only module that knows OpenTelemetry, imported only where traces are asked for. Spans are handed to a thread by a
bounded queue: a collector that is slow or away costs spans, never a request. Times are the monotonic clock's, put on
the wall clock once a request, so that a step of that clock bends no duration.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidegate import __version__
from tidegate.clock import Clock
from tidegate.engine.request import RequestTimings
from tidegate.loopback import is_this_machine
from tidegate.observability.requests import OK, FinishedRequest, RequestContext

_STOP_SECONDS = 2.0
_COLLECTOR = "http://localhost:4317"
"""Where OpenTelemetry sends traces if nobody says."""
_PROPAGATOR = TraceContextTextMapPropagator()


class RequestSpan:
    """The span of a request that is sampled; ``ahead`` is what the wall clock was ahead of the monotonic one, in ns."""

    __slots__ = ("ahead", "span", "trace_id")

    def __init__(self, span: OtelSpan, ahead: int) -> None:
        self.span = span
        self.ahead = ahead
        self.trace_id = format_trace_id(span.get_span_context().trace_id)

    def headers(self) -> list[tuple[str, str]]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(self.span))
        return list(carrier.items())


class OtelTracing:
    """Makes spans and exports them.

    Args:
        exporter: Where they go.
        replica: This process's name.
        clock: The engine's and the requests'.
    """

    def __init__(self, exporter: SpanExporter, replica: str, clock: Clock) -> None:
        self._clock = clock
        self._exporter = exporter
        attributes = {SERVICE_VERSION: __version__, SERVICE_INSTANCE_ID: replica}
        # Resource.create lets OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME go before.
        if "OTEL_SERVICE_NAME" not in os.environ:
            attributes[SERVICE_NAME] = "tidegate"
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tidegate", __version__)

    def begin(self, headers: Mapping[str, str]) -> RequestSpan | None:
        """Return the span of a request, below the client's where ``traceparent`` names it; None: not sampled."""
        context = _PROPAGATOR.extract(headers) if "traceparent" in headers else None
        now = round(self._clock.wall() * 1e9)
        span = self._tracer.start_span("request", context, SpanKind.SERVER, start_time=now)
        return RequestSpan(span, now - self._clock.nanoseconds()) if span.is_recording() else None

    def end(self, request: RequestContext, finished: FinishedRequest) -> None:
        """End the request's span and make those below it."""
        assert isinstance(request.span, RequestSpan)
        span, ahead = request.span.span, request.span.ahead
        for timings in request.timings:
            self._tell(timings, span, ahead)
        span.update_name(f"{finished.interface} {finished.method}")
        span.set_attributes(
            {
                "tidegate.interface": finished.interface,
                "tidegate.method": finished.method,
                "tidegate.outcome": finished.outcome,
                "tidegate.request": request.id,
            }
        )
        if finished.session:
            span.set_attribute("tidegate.session", finished.session)
        if finished.outcome != OK:
            span.set_status(Status(StatusCode.ERROR, finished.outcome))
        span.end(round(finished.ended * 1e9) + ahead)

    async def stop(self) -> None:
        """Export what is left, for a moment at most."""
        stopping = threading.Thread(target=self._provider.shutdown, daemon=True)
        stopping.start()
        await asyncio.to_thread(stopping.join, _STOP_SECONDS)
        if stopping.is_alive():
            self._exporter.shutdown()

    def _tell(self, timings: RequestTimings, above: OtelSpan, ahead: int) -> None:
        if timings.first_run is None:
            return
        self._span("queue", above, (timings.arrived, timings.first_run), ahead, {})
        figures = {
            "tidegate.runs": timings.num_runs,
            "tidegate.rows": timings.num_rows,
            "tidegate.steps": timings.num_steps,
            "tidegate.run_seconds": timings.run_seconds,
        }
        self._span("run", above, (timings.first_run, timings.last_run), ahead, figures)
        if timings.stored is not None:
            self._span("commit", above, timings.stored, ahead, {"tidegate.commits": timings.num_commits})

    def _span(
        self, name: str, above: OtelSpan, times: tuple[float, float], ahead: int, figures: Mapping[str, float]
    ) -> None:
        began, ended = (round(seconds * 1e9) + ahead for seconds in times)
        span = self._tracer.start_span(name, set_span_in_context(above), attributes=figures, start_time=began)
        span.end(ended)


def open_tracing(url: str | None, replica: str, clock: Clock) -> OtelTracing:
    """Return traces to the collector at ``url``, None: where OTEL_EXPORTER_OTLP_… says."""
    return OtelTracing(OTLPSpanExporter(endpoint=url, channel_options=_options(url)), replica, clock)


def _options(url: str | None) -> Any:
    """A collector on this machine is reached directly, whatever proxy the environment names."""
    urls = (url, *map(os.environ.get, (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT)))
    host = urlsplit(next(filter(None, urls), _COLLECTOR)).hostname or ""
    return (("grpc.enable_http_proxy", 0),) if is_this_machine(host) else None
