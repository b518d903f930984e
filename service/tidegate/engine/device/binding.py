"""Tensors bound to a session for runs of one shape. Knows onnxruntime's I/O binding, and nothing of rows or slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate.api import Tensor
from tidegate.bundle import TensorSpec
from tidegate.engine.device.graph import arena_names
from tidegate.engine.device.memory import DeviceMemory
from tidegate.ort import onnxruntime
from tidegate.watchdog import Options, RunLimit

NOT_CAPTURED = -1
"""onnxruntime's id for a run that shall not be captured; any other names a captured graph."""


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
