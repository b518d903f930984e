"""What the settings ask to be observed: requests counted, or told one by one; traces, or none."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from tidegate.clock import Clock
from tidegate.config import Settings
from tidegate.errors import ConfigurationError
from tidegate.observability.access import AccessLog
from tidegate.observability.logs import write_lines
from tidegate.observability.requests import RequestMetrics, RequestRecorder

if TYPE_CHECKING:
    from tidegate.observability.tracing import OtelTracing

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of OpenTelemetry's own; either asks for traces as ``--otlp`` does."""


def make_requests(settings: Settings, tracing: OtelTracing | None, clock: Clock) -> RequestMetrics:
    """Return where requests are counted, in the running event loop."""
    access = AccessLog(settings.log_format, clock, write_lines) if settings.access_log else None
    if access is None and tracing is None and settings.log_level != "debug":
        return RequestMetrics(clock)
    return RequestRecorder(clock, access, tracing)


def make_tracing(settings: Settings, clock: Clock) -> OtelTracing | None:
    """Return where traces go, None where nobody asked for them.

    Raises:
        ConfigurationError: ``--otlp`` asks for them, and the extra is not installed.
    """
    if settings.otlp is None and not _is_asked_by_environment():
        return None
    try:
        from tidegate.observability.tracing import open_tracing
    except ImportError:
        if settings.otlp is not None:
            message = "--otlp needs OpenTelemetry: pip install 'tidegate[otel]'"
            raise ConfigurationError(message, reason="NO_OPENTELEMETRY") from None
        # Such variables may be set for a whole cluster.
        log.warning("no traces, though %s asks for them: pip install 'tidegate[otel]'", ENDPOINTS[0])
        return None
    return open_tracing(settings.otlp, settings.replica or "tidegate", clock)


def _is_asked_by_environment() -> bool:
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    is_none = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return not is_off and not is_none and any(os.environ.get(name) for name in ENDPOINTS)
