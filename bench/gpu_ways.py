"""Ways to step a batch of sessions once on a device: tokens start on the host, logits end there, states go on.

Each way is a call that runs one tick and returns its logits [rows, steps, tokens]. Knows nothing of time or reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from tidegate.api import Tensor
from tidegate.bundle import BATCH, GRAPH, Bundle
from tidegate.engine.arena import Arena, ArenaLike, Budget, Plane
from tidegate.engine.device.arena import FIRST_ROW, DeviceArena, DeviceMemory
from tidegate.engine.device.runner import DeviceRunner, open_device_runner
from tidegate.engine.loop import RunnerLike
from tidegate.engine.runner import Runner, open_session
from tidegate.ort import onnxruntime
from tidegate_models.networks import RecurrentNetwork, token_network

Way: TypeAlias = Callable[[NDArray[np.int64]], Tensor]

_BUDGET = 1 << 30


def host_states(bundle: Bundle, provider: str, rows: int) -> Way:
    """Bare onnxruntime: states go to the device and back in every run."""
    manifest = bundle.manifest
    session = open_session(bundle.graph, GRAPH, provider, 1)
    names = ["logits", *(spec.output for spec in manifest.states)]
    states = _initial(bundle, rows)

    def step(tokens: NDArray[np.int64]) -> Tensor:
        feeds = {spec.input: state for spec, state in zip(manifest.states, states, strict=True)}
        logits, *states[:] = session.run(names, {"tokens": tokens, **feeds})
        return np.asarray(logits)

    return step


def bound_states(bundle: Bundle, provider: str, rows: int) -> Way:
    """Bare onnxruntime at its best: always the same sessions, whose states stay on the device, in two sets of tensors
    that take turns.
    """
    manifest = bundle.manifest
    session = open_session(bundle.graph, GRAPH, provider, 1)
    sets = [[_put(state, provider) for state in _initial(bundle, rows)] for _ in range(2)]

    def step(tokens: NDArray[np.int64]) -> Tensor:
        io = session.io_binding()
        io.bind_ortvalue_input("tokens", _put(tokens, provider))
        io.bind_output("logits", "cpu")
        for spec, before, after in zip(manifest.states, *sets, strict=True):
            io.bind_ortvalue_input(spec.input, before)
            io.bind_ortvalue_output(spec.output, after)
        session.run_with_iobinding(io)
        sets.reverse()
        return np.asarray(io.get_outputs()[0].numpy())

    return step


def host_arena(bundle: Bundle, provider: str, rows: int) -> Way:
    """The server with ``--arena host``: states are gathered, copied to the device, copied back and scattered."""
    arena = Arena([Plane.of_state(spec) for spec in bundle.manifest.states], Budget(_BUDGET))
    return _ticks(arena, Runner(bundle, provider), len(bundle.manifest.states), rows)


def device_arena(bundle: Bundle, provider: str, rows: int) -> Way:
    """The server with ``--arena device``."""
    arena, runner = _on_device(bundle, provider, captures=False)
    return _ticks(arena, runner, len(bundle.manifest.states), rows)


def captured(bundle: Bundle, provider: str, rows: int) -> Way | None:
    """The server with ``--arena device --cuda-graphs``; None where the graph cannot be captured."""
    arena, runner = _on_device(bundle, provider, captures=True)
    return _ticks(arena, runner, len(bundle.manifest.states), rows) if runner.captures else None


def pytorch(bundle: Bundle, provider: str, rows: int) -> Way:
    """PyTorch's own layers (cuDNN on a GPU) in a network of the bundle's sizes, with random weights."""
    return _stepped(_network(bundle), provider, rows)


def compiled(bundle: Bundle, provider: str, rows: int) -> Way:
    """The same network through ``torch.compile``, which then writes the recurrent layers' kernels itself."""
    torch._dynamo.config.allow_rnn = True  # noqa: SLF001 - the documented way to let it compile them
    network: Any = torch.compile(_network(bundle), dynamic=False)
    return _stepped(network, provider, rows)


def _ticks(arena: ArenaLike, runner: RunnerLike, num_states: int, rows: int) -> Way:
    slots = np.array([arena.allocate() for _ in range(rows)], np.intp)
    sources = np.zeros(rows, np.intp)  # the initial state, once

    def step(tokens: NDArray[np.int64]) -> Tensor:
        outputs, states = runner.run([tokens], arena.gather(sources, num_states))
        arena.scatter(slots, states)
        sources[:] = slots
        return outputs["logits"]

    return step


def _on_device(bundle: Bundle, provider: str, *, captures: bool) -> tuple[DeviceArena, DeviceRunner]:
    memory = DeviceMemory(bundle.manifest.states, provider, FIRST_ROW + 4096)
    runner = open_device_runner(bundle, memory, provider, captures=captures)
    return DeviceArena(memory, None, Budget(_BUDGET)), runner


def _network(bundle: Bundle) -> RecurrentNetwork:
    manifest = bundle.manifest
    layers, _, hidden = manifest.states[0].axes
    network = token_network(
        num_tokens=int(manifest.output("logits").axes[-1]),
        embedding_size=int(manifest.provenance["recipe"]["network"]["embedding_size"]),
        cell={"lstm": "lstm", "gru": "gru"}[manifest.cell],  # type: ignore[arg-type]
        hidden_size=int(hidden),
        num_layers=int(layers),
    )
    return network.eval()


def _stepped(network: RecurrentNetwork, provider: str, rows: int) -> Way:
    torch.backends.cudnn.allow_tf32 = False  # as the server has it; off for other products by default
    network.to(provider)
    state = [network.initial_state(rows, provider)]

    def step(tokens: NDArray[np.int64]) -> Tensor:
        with torch.inference_mode():
            logits, state[0] = network(torch.from_numpy(tokens).to(provider), state[0])
            return np.asarray(logits.cpu().numpy())

    return step


def _initial(bundle: Bundle, rows: int) -> list[Tensor]:
    return list(_filled(bundle, rows))


def _filled(bundle: Bundle, rows: int) -> Iterator[Tensor]:
    for spec in bundle.manifest.states:
        shape = [rows if axis == BATCH else int(axis) for axis in spec.axes]
        yield np.full(shape, spec.initial, spec.dtype)


def _put(array: Tensor, provider: str) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, provider, 0)
