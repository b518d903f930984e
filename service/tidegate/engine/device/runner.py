"""onnxruntime on a device where states stay between runs: only inputs go there, and only outputs come back.

A run of single steps has one of few shapes, its rows filled up to a power of two, and its tensors are bound once for
each: the device allocates nothing from tick to tick, and the run may be captured as a CUDA graph. Filling rows read the
initial state and write to the spare row. Longer runs are bound as they come.

A captured run is recorded with its addresses and replayed. onnxruntime runs it more than once while it records; as no
run writes to a row that it reads, that does no harm.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from tidegate.api import Tensor
from tidegate.bundle import BATCH, GRAPH, TIME, Bundle, Manifest, TensorSpec
from tidegate.codecs.settings import default_of
from tidegate.engine.device.arena import INITIAL_ROW, SPARE_ROW, DeviceMemory
from tidegate.engine.device.graph import SOURCES, TARGETS, arena_names, device_graph
from tidegate.engine.runner import from_graph, lengths_input, open_session, to_graph
from tidegate.errors import BundleError
from tidegate.ort import onnxruntime
from tidegate.watchdog import NO_LIMIT, Options, RunLimit

NOT_CAPTURED = -1
"""onnxruntime's id for a run that shall not be captured; any other names a captured graph."""

log = logging.getLogger(__name__)


def open_device_runner(
    bundle: Bundle,
    memory: DeviceMemory,
    provider: str = "cpu",
    threads: int = 1,
    *,
    fills: bool = True,
    captures: bool = False,
    limit: RunLimit = NO_LIMIT,
) -> DeviceRunner:
    """Load a bundle's graph with its states on the device.

    Args:
        bundle: A verified bundle.
        memory: The states.
        provider: ``cpu`` or ``cuda``; the memory's device is the same.
        threads: Threads that one run on the CPU may use.
        fills: Whether runs of single steps are filled up to a power of two rows; not for rows that see each other.
        captures: Whether runs of single steps shall become CUDA graphs. Where that fails, or a graph gives something
            else when it is replayed, they run as they are, and the log says why.
        limit: The time that loading and runs may take.

    Raises:
        BundleError: onnxruntime refuses the graph.
        ConfigurationError: The provider is not there or does not start.
    """
    graph, name = _wrapped(bundle), f"{bundle.path}/{GRAPH}"
    if captures:
        try:
            session = open_session(graph, name, provider, threads, {"enable_cuda_graph": "1"}, limit=limit)
            runner = DeviceRunner(bundle.manifest, session, memory, fills=fills, captures=True, limit=limit)
            runner.check_replay()
        except Exception as error:  # noqa: BLE001 - onnxruntime raises a dozen unrelated types
            log.warning("%s: no CUDA graphs: %s", name, error)
        else:
            return runner
    session = open_session(graph, name, provider, threads, limit=limit)
    return DeviceRunner(bundle.manifest, session, memory, fills=fills, captures=False, limit=limit)


class DeviceRunner:
    """One loaded device graph.

    Args:
        manifest: Of the bundle whose graph was wrapped.
        session: The device graph.
        memory: The states.
        fills: Whether runs of single steps are filled up to a power of two rows.
        captures: Whether runs of single steps are captured.
        limit: The time that runs may take.

    Attributes:
        num_padding_steps: Steps of rows that only filled a run up.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: onnxruntime.InferenceSession,
        memory: DeviceMemory,
        *,
        fills: bool,
        captures: bool,
        limit: RunLimit = NO_LIMIT,
    ) -> None:
        self.provider: str = session.get_providers()[0]
        self.captures = captures
        self.num_padding_steps = 0
        self._inputs = manifest.sources
        self._settings = {spec.name: default_of(spec) for spec in manifest.settings}
        self._outputs = manifest.outputs
        self._lengths = lengths_input(session, manifest.lengths)
        self._session = session
        self._memory = memory
        self._fills = fills
        self._limit = limit
        self._ids = itertools.count(1)
        self._bindings: dict[int, Binding] = {}
        self._generation = memory.generation

    def run(self, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Run the graph once.

        Args:
            inputs: One array an input, [batch, steps, …], then one a setting, [batch, …].
            states: The rows that the states are in, and those that the new ones go to, both [batch].

        Returns:
            The outputs by name, as ``Runner.run`` gives them, and the rows of the new states.
        """
        rows, steps = inputs[0].shape[:2]
        size = 1 << (rows - 1).bit_length() if self._fills and steps == 1 else rows
        self.num_padding_steps += (size - rows) * steps
        feeds = self._feeds(inputs, states, size)
        results = self._binding(size, steps, feeds).run(feeds)
        outputs = {
            spec.name: from_graph(spec, array)[:rows] for spec, array in zip(self._outputs, results, strict=True)
        }
        return outputs, [states[1]]

    def check_replay(self) -> None:
        """Run the same step first plainly, then replayed, with another one recorded in between.

        Raises:
            BundleError: What is replayed gives something else.
        """
        plain, _, replayed = (self._probe(value) for value in (0, 1, 0))
        for name, output in plain.items():
            if not np.array_equal(output, replayed[name], equal_nan=True):
                raise BundleError(f"{name} of a replayed run is not that of a plain one")

    def _probe(self, value: int) -> dict[str, Tensor]:
        """Run one step of one row, its inputs all ``value`` and its settings the default, from the initial state; keep
        nothing.
        """
        inputs = []
        for spec in self._inputs:
            shape = [axis if isinstance(axis, int) else 1 for axis in spec.axes]
            default = self._settings.get(spec.name)
            array = np.full(shape, value, spec.dtype) if default is None else default[None]
            inputs.append(from_graph(spec, array) if default is None else array)
        outputs, _ = self.run(inputs, [np.array([INITIAL_ROW]), np.array([SPARE_ROW])])
        return outputs

    def _feeds(self, inputs: Sequence[Tensor], states: Sequence[Tensor], rows: int) -> dict[str, Tensor]:
        sources, targets = (state.astype(np.int64, copy=False) for state in states)
        feeds = {
            spec.name: to_graph(spec, _filled(array, rows, 0)) for spec, array in zip(self._inputs, inputs, strict=True)
        }
        feeds[SOURCES] = _filled(sources, rows, INITIAL_ROW)
        feeds[TARGETS] = _filled(targets, rows, SPARE_ROW)[:, None]
        if self._lengths is not None:
            name, dtype = self._lengths
            feeds[name] = np.full(rows, inputs[0].shape[1], dtype)
        return feeds

    def _binding(self, rows: int, steps: int, feeds: dict[str, Tensor]) -> Binding:
        if self._generation != self._memory.generation:
            self._bindings.clear()
            self._generation = self._memory.generation
        if steps != 1:
            return Binding(self._session, self._memory, self._outputs, feeds, {}, NOT_CAPTURED, self._limit)
        if rows not in self._bindings:
            fixed = _single_steps(self._outputs, rows)
            id_ = next(self._ids) if self.captures and len(fixed) == len(self._outputs) else NOT_CAPTURED
            self._bindings[rows] = Binding(self._session, self._memory, self._outputs, feeds, fixed, id_, self._limit)
        return self._bindings[rows]


def _wrapped(bundle: Bundle) -> bytes:
    manifest = bundle.manifest
    kept = [spec.name for spec in manifest.outputs]
    try:
        return device_graph(bundle.graph, manifest.states, kept)
    except ValueError as error:
        raise BundleError(
            f"{bundle.path}/{GRAPH}: not an ONNX file", reason="GRAPH_REFUSED", cause=str(error)
        ) from error


def _filled(array: Tensor, rows: int, value: int) -> Tensor:
    """Return the array with ``rows`` rows, those beyond its own full of ``value``."""
    missing = rows - len(array)
    if not missing:
        return np.ascontiguousarray(array)
    return np.concatenate([array, np.full((missing, *array.shape[1:]), value, array.dtype)])


def _single_steps(outputs: Sequence[TensorSpec], rows: int) -> dict[str, Tensor]:
    """Return arrays as the graph gives them for single steps, for the outputs whose every axis is known."""
    known: dict[str, Tensor] = {}
    for spec in outputs:
        sizes = [{BATCH: rows, TIME: 1}.get(axis) if isinstance(axis, str) else axis for axis in spec.axes]
        shape = [size for size in sizes if size is not None]
        if len(shape) == len(sizes):
            known[spec.name] = np.zeros(shape, spec.dtype)
    return known


class Binding:
    """Inputs and outputs on the device, and the arenas, which are input and output at once.

    Args:
        session: The device graph.
        memory: The arenas. Where they grow, a binding is stale.
        outputs: What a run returns.
        feeds: Inputs by name, whose shapes and dtypes all runs share.
        fixed: Arrays like the outputs whose shape is known beforehand; onnxruntime makes the others in each run.
        id_: Of the captured graph, or ``NOT_CAPTURED``.
        limit: The time that runs may take.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        memory: DeviceMemory,
        outputs: Sequence[TensorSpec],
        feeds: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        id_: int,
        limit: RunLimit,
    ) -> None:
        self._session = session
        self._limit = limit
        self._options = Options({"gpu_graph_id": str(id_)})
        self._io = session.io_binding()
        self._inputs = {name: _put(feed, memory.device) for name, feed in feeds.items()}
        for name, value in self._inputs.items():
            self._io.bind_ortvalue_input(name, value)
        for spec in outputs:
            if spec.name in fixed:
                self._io.bind_ortvalue_output(spec.name, _put(fixed[spec.name], memory.device))
            else:
                self._io.bind_output(spec.name, memory.device, 0)
        for index, array in enumerate(memory.arrays):
            names = arena_names(index)
            self._io.bind_ortvalue_input(names.before, array)
            self._io.bind_ortvalue_output(names.after, array)
        self._num_outputs = len(outputs)

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Return copies of the outputs, in their order."""
        for name, feed in feeds.items():
            self._inputs[name].update_inplace(feed)
        self._limit.run(self._options, lambda options: self._session.run_with_iobinding(self._io, options))
        return [value.numpy().copy() for value in self._io.get_outputs()[: self._num_outputs]]


def _put(array: Tensor, device: str) -> onnxruntime.OrtValue:
    """Copy to the device: on the CPU an OrtValue would otherwise be the caller's own array."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)
