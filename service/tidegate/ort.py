"""onnxruntime as tidegate uses it: its telemetry off, its sessions made in one way, its failures by one name.

Everything of ours that needs onnxruntime takes it from here; a test holds that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tidegate.bundle import BATCH, TIME, Axis, Manifest
from tidegate.errors import BundleError

__all__ = ["CPU", "FAILURES", "REFUSAL", "check_edges", "is_known", "load_session", "newest_opset", "onnxruntime"]

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

REFUSAL: type[Exception] = state.InvalidArgument
"""What it raises where a node refuses the values that it is given, like an index out of range."""


Load = Callable[[onnxruntime.SessionOptions, Callable[[], onnxruntime.InferenceSession]], onnxruntime.InferenceSession]


def load_session(
    graph: bytes,
    provider: str = CPU,
    options: Mapping[str, str] | None = None,
    *,
    threads: int = 1,
    load: Load = lambda _, call: call(),
    is_optimised: bool = True,
) -> onnxruntime.InferenceSession:
    """Load the content of an ONNX file on one provider.

    Args:
        graph: A serialised ModelProto with all its weights inside.
        provider: onnxruntime's name of it, which must be available.
        options: The provider's.
        threads: Threads that one run may use.
        load: Calls what loads, with the settings by which it can be stopped (`watchdog.RunLimit.load`).
        is_optimised: Whether nodes may be fused and folded; not where their own outputs are looked at.

    Raises:
        Exception: One of ``FAILURES``, or another of the dozen unrelated types that onnxruntime has.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    if not is_optimised:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4  # what fails is raised with its reason; a line on standard error is nobody's log
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The bytes decide nothing: onnxruntime's own format, which `onnx_file` cannot check, is not taken.
    settings.add_session_config_entry("session.load_model_format", "ONNX")
    # It turns fp16 weights into fp32 for CPU kernels, and on some graphs onnxruntime 1.32 ends in a segmentation fault.
    settings.add_session_config_entry(
        "optimization.disable_specified_optimizers", "FuseFp16InitializerToFp32NodeTransformer"
    )
    providers = [(provider, dict(options or {}))]
    session = load(settings, lambda: onnxruntime.InferenceSession(graph, settings, providers=providers))
    session.disable_fallback()  # a provider that fails is told, and not replaced by the CPU
    # The session keeps the bytes to load itself again on another provider, which is never asked for: a model of 400 MB
    # took 400 MB more.
    session._model_bytes = None  # noqa: SLF001 - there is no public way
    return session


@cache
def _operators() -> frozenset[tuple[str, str, int]]:
    """Return every operator that onnxruntime has: domain, name and the opset that it came with."""
    return frozenset((item.domain, item.name, item.since_version) for item in state.get_all_operator_schema())


def newest_opset() -> int:
    """Return the newest opset of ONNX of which onnxruntime has an operator."""
    return max(since for domain, _, since in _operators() if not domain)


def is_known(domain: str, operator: str) -> bool:
    """Whether onnxruntime has an operator of this domain and name."""
    return any((domain, operator) == known[:2] for known in _operators())


def check_edges(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """Refuse a graph that takes or gives something else than its manifest says: every run of it would fail.

    Raises:
        BundleError: With the tensor.
    """
    taken = {spec.name: (spec.dtype, spec.axes) for spec in manifest.sources}
    taken |= {spec.input: (spec.dtype, spec.axes) for spec in manifest.states}
    given = {spec.name: spec.dtype for spec in manifest.outputs}
    given |= {spec.output: spec.dtype for spec in manifest.states}
    found = {item.name: item for item in session.get_inputs()}
    wanted = set(taken) if manifest.lengths is None else {*taken, manifest.lengths}
    if set(found) != wanted:
        raise BundleError(f"the graph's inputs are {sorted(found)}, the manifest's inputs and states {sorted(wanted)}")
    for name, (dtype, axes) in taken.items():
        _check_type(name, found[name].type, dtype)
        _check_shape(name, found[name].shape, axes)
    outputs = {item.name: item for item in session.get_outputs()}
    for name, dtype in given.items():
        if name not in outputs:
            raise BundleError(f"the graph has no output {name}")
        _check_type(name, outputs[name].type, dtype)


def dtype_of(onnx_type: str) -> str:
    """Return numpy's name of what onnxruntime calls ``tensor(float)``; its own word where that is no tensor."""
    word = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(word, word)


def _check_type(name: str, found: str, wanted: str) -> None:
    if dtype_of(found) != wanted:
        raise BundleError(f"{name} is {dtype_of(found)} in the graph, {wanted} in the manifest")


def _check_shape(name: str, found: Sequence[int | str | None], wanted: Sequence[Axis]) -> None:
    """Of an input: onnxruntime refuses every run whose sizes are not those that the graph declares."""
    if not found:  # it has no axes, or the graph does not say which: onnxruntime tells both alike
        return
    if len(found) != len(wanted) or not all(map(_fits, found, wanted)):
        raise BundleError(f"{name} is {list(found)} in the graph, {list(wanted)} in the manifest")


def _fits(size: int | str | None, axis: Axis) -> bool:
    """Whether a size of the graph may be that of an axis of the manifest, where a label may have any size."""
    return not isinstance(size, int) or axis == size or (isinstance(axis, str) and axis not in {BATCH, TIME})
