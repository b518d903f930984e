"""onnxruntime as tidegate uses it: its telemetry off, its sessions made in one way, its failures by one name.

Everything of ours that needs onnxruntime takes it from here; a test holds that.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

__all__ = ["CPU", "FAILURES", "load_session", "onnxruntime"]

# Telemetry is off by the environment (`tidegate/__init__.py`), which releases without this call read too.
onnxruntime.disable_telemetry_events()

CPU = "CPUExecutionProvider"

FAILURES = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
"""What onnxruntime raises where a graph cannot be loaded or run; that memory ran out is a MemoryError now and then."""


def load_session(
    graph: bytes, provider: str = CPU, options: Mapping[str, str] | None = None, *, threads: int = 1
) -> onnxruntime.InferenceSession:
    """Load the content of an ONNX file on one provider.

    Args:
        graph: A serialised ModelProto with all its weights inside.
        provider: onnxruntime's name of it, which must be available.
        options: The provider's.
        threads: Threads that one run may use.

    Raises:
        Exception: One of ``FAILURES``, or another of the dozen unrelated types that onnxruntime has.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what fails is raised with its reason; a line on standard error is nobody's log
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The bytes decide nothing: onnxruntime's own format, which `onnx_file` cannot check, is not taken.
    settings.add_session_config_entry("session.load_model_format", "ONNX")
    # It turns fp16 weights into fp32 for CPU kernels, and on some graphs onnxruntime 1.32 ends in a segmentation fault.
    settings.add_session_config_entry(
        "optimization.disable_specified_optimizers", "FuseFp16InitializerToFp32NodeTransformer"
    )
    session = onnxruntime.InferenceSession(graph, settings, providers=[(provider, dict(options or {}))])
    session.disable_fallback()  # a provider that fails is told, and not replaced by the CPU
    # The session keeps the bytes to load itself again on another provider, which is never asked for: a model of 400 MB
    # took 400 MB more.
    session._model_bytes = None  # noqa: SLF001 - there is no public way
    return session
