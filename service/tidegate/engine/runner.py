"""onnxruntime behind one call: canonical arrays in, canonical arrays out. Knows nothing of sessions, slots or tasks.

Canonical means batch first, time second. The graph may have its axes elsewhere, or no batch at all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from tidegate.api import Tensor
from tidegate.bundle import BATCH, GRAPH, TIME, Axis, Bundle, StateSpec, TensorSpec
from tidegate.errors import BundleError, ConfigurationError
from tidegate.ort import check_edges, load_session, onnxruntime
from tidegate.watchdog import NO_LIMIT, Options, RunLimit

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# TF32 keeps 10 bits of mantissa: off, so that a GPU gives what the CPU gives.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}


def check_provider(name: str) -> str:
    """Return onnxruntime's name of the provider, whose libraries are loaded then, from wherever they are installed.

    Raises:
        ConfigurationError: It is not in the installed onnxruntime: never a silent fall to the CPU.
    """
    provider = PROVIDERS[name]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ConfigurationError(
            f"provider {name} is not in the installed onnxruntime (it has {', '.join(available)}): "
            f"install tidegate[{name}]",
            reason="PROVIDER_NOT_AVAILABLE",
        )
    if name == "cuda":
        onnxruntime.preload_dlls()
    return provider


class Runner:
    """One loaded graph.

    Args:
        bundle: A verified bundle.
        provider: ``cpu`` or ``cuda``.
        threads: Threads that one run may use.
        limit: The time that loading and runs may take.

    Raises:
        BundleError: onnxruntime refuses the graph, or it is not what the manifest says.
        ConfigurationError: The provider is not there or does not start.

    Attributes:
        num_padding_steps: Steps of rows that only filled a run up: here never one.
    """

    num_padding_steps = 0

    def __init__(self, bundle: Bundle, provider: str = "cpu", threads: int = 1, *, limit: RunLimit = NO_LIMIT) -> None:
        manifest = bundle.manifest
        self._inputs = manifest.sources
        self._outputs = manifest.outputs
        self._states = manifest.states
        self._session = open_session(bundle.graph, f"{bundle.path}/{GRAPH}", provider, threads, limit=limit)
        self._limit = limit
        self._options = Options()
        self.provider = self._session.get_providers()[0]
        self._lengths = lengths_input(self._session, manifest.lengths)
        check_edges(self._session, manifest)
        self._names = [spec.name for spec in self._outputs] + [spec.output for spec in self._states]

    def run(self, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Run the graph once.

        Args:
            inputs: One array an input, [batch, steps, …], then one a setting, [batch, …].
            states: One array a state, batch where the graph has it (first where it has none, with one row).

        Raises:
            InvalidInputError: A row's values are refused by the graph; alone, every row finds out whether it is meant.

        Returns:
            The outputs by name, each [batch, steps, …] ([batch, …] where not per step), and the new states like
            ``states``.

        Raises:
            InternalError: The run took longer than it may; reason RUN_TIMEOUT.
        """
        feeds = {spec.name: to_graph(spec, array) for spec, array in zip(self._inputs, inputs, strict=True)}
        for spec, array in zip(self._states, states, strict=True):
            # Of a state without axes, array[0] is a number of numpy's, which onnxruntime takes for no tensor.
            feeds[spec.input] = array if spec.batch_axis is not None else np.asarray(array[0])
        if self._lengths is not None:
            name, dtype = self._lengths
            rows, steps = inputs[0].shape[:2]
            feeds[name] = np.full(rows, steps, dtype)
        results = self._limit.run(self._options, lambda options: self._session.run(self._names, feeds, options))
        outputs = {spec.name: from_graph(spec, array) for spec, array in zip(self._outputs, results, strict=False)}
        news = results[len(self._outputs) :]
        return outputs, [_state(spec, array) for spec, array in zip(self._states, news, strict=True)]


def open_session(
    graph: bytes,
    name: str,
    provider: str,
    threads: int,
    options: Mapping[str, str] | None = None,
    *,
    limit: RunLimit = NO_LIMIT,
) -> onnxruntime.InferenceSession:
    """Load a graph on one provider and no other.

    Args:
        graph: The content of an ONNX file.
        name: What errors call it.
        provider: ``cpu`` or ``cuda``.
        threads: Threads that one run may use.
        options: The provider's, beside those that are always set.
        limit: The time that it may take.

    Raises:
        BundleError: onnxruntime refuses the graph.
        ConfigurationError: The provider is not there or does not start.
    """
    wanted = check_provider(provider)
    try:
        all_options = {**_PROVIDER_OPTIONS[provider], **(options or {})}
        session = load_session(graph, wanted, all_options, threads=threads, load=limit.load)
    except BundleError:
        raise
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise BundleError(f"{name}: onnxruntime refuses it", reason="GRAPH_REFUSED", cause=str(error)) from error
    if session.get_providers()[0] != wanted:
        raise ConfigurationError(f"provider {provider} did not start", reason="PROVIDER_NOT_AVAILABLE")
    return session


def lengths_input(session: onnxruntime.InferenceSession, name: str | None) -> tuple[str, str] | None:
    """Return name and dtype of the input that says how long each row is; all rows of a run are equally long."""
    if name is None:
        return None
    types = {item.name: item.type for item in session.get_inputs()}
    if name not in types:
        raise BundleError(f"the graph has no input {name}, which the manifest names for lengths")
    return name, types[name].removeprefix("tensor(").removesuffix(")")


@functools.cache
def _order(axes: tuple[Axis, ...]) -> tuple[int, ...] | None:
    """Return the graph's axes in canonical order: batch, time, the rest; None where they are in that order."""
    named = [axes.index(axis) for axis in (BATCH, TIME) if axis in axes]
    order = (*named, *(axis for axis in range(len(axes)) if axis not in named))
    return None if order == tuple(range(len(axes))) else order


def to_graph(spec: TensorSpec, array: Tensor) -> Tensor:
    """Return a canonical array with its axes where the graph has them."""
    source = array if spec.batch_axis is not None else array[0, ...]  # an array, too, where no axis is left
    order = _order(spec.axes)
    return source if order is None else np.ascontiguousarray(source.transpose(np.argsort(order)))


def from_graph(spec: TensorSpec, array: Tensor) -> Tensor:
    """Return a graph's array in canonical order: the inverse of ``to_graph``."""
    order = _order(spec.axes)
    source = array if order is None else array.transpose(order)
    return source if spec.batch_axis is not None else source[None]


def _state(spec: StateSpec, array: Tensor) -> Tensor:
    return array if spec.batch_axis is not None else np.asarray(array)[None]
