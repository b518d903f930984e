"""Parity: the graph in onnxruntime computes what the module computes in PyTorch.

PyTorch runs every sequence whole; onnxruntime runs it in random splits, and in ragged batches where equal lengths meet.
Then many lengths are compared (`lengths`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tidegate.bundle import Json, Manifest
from tidegate.proof import ABSOLUTE, excess
from tidegate.replay import GraphRunner, Result, Tensors, random_inputs, random_lengths, stream_together
from tidegate_export.errors import ExportError
from tidegate_export.graph import example
from tidegate_export.lengths import check_lengths

_LENGTHS = (40, 23, 23, 7, 1)
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Parity:
    """Result of a comparison that passed: largest |Δ| - 1e-4·|x| seen, and the number of sequences compared."""

    max_error: float
    cases: int

    def as_json(self) -> Json:
        """Return it for the manifest's provenance."""
        return {"max_error": self.max_error, "cases": self.cases}


def check_parity(
    module: nn.Module, graph: bytes, manifest: Manifest, *, seed: int = 1, tolerance: float = ABSOLUTE
) -> Parity:
    """Compare `graph` with `module` in evaluation mode over random splits and ragged batches.

    `tolerance` stands in the place of 1e-5 for modules that compute in fp16.

    Raises:
        ExportError: They differ by more than 1e-5 + 1e-4·|x|.
    """
    rng = np.random.default_rng(seed)
    runner = GraphRunner(graph, manifest)
    rows = [random_inputs(manifest, 1, steps, rng) for steps in _LENGTHS]
    expected = [run_module(module, manifest, row) for row in rows]
    errors = []
    for _ in range(_ROUNDS):
        found = [runner.walk(row, random_lengths(steps, rng)) for row, steps in zip(rows, _LENGTHS, strict=True)]
        errors += [_worst(a, b, tolerance) for a, b in zip(expected, found, strict=True)]
        if manifest.is_batchable and manifest.batch_invariant:
            found = stream_together(runner, rows, _LENGTHS, rng)
            errors += [_worst(a, b, tolerance) for a, b in zip(expected, found, strict=True)]
    errors += check_lengths(module, graph, runner, lambda inputs: run_module(module, manifest, inputs), rng, tolerance)
    return Parity(max(errors), len(errors))


def run_module(module: nn.Module, manifest: Manifest, inputs: Tensors) -> Result:
    """Run `module` in PyTorch over one whole row."""
    _, states = example(manifest, rows=1, steps=1)
    with torch.no_grad():
        fed = [torch.from_numpy(inputs[spec.name]) for spec in manifest.sources]
        values = [value.numpy() for value in module(*fed, *states)]
    outputs = {spec.name: value for spec, value in zip(manifest.outputs, values, strict=False)}
    after = values[len(manifest.outputs) :]
    return Result(outputs, {state.input: value for state, value in zip(manifest.states, after, strict=True)})


def _worst(expected: Result, found: Result, tolerance: float) -> float:
    pairs = {name: (array, found.outputs[name]) for name, array in expected.outputs.items()}
    pairs |= {name: (array, found.states[name]) for name, array in expected.states.items()}
    errors = {name: excess(*pair) for name, pair in pairs.items()}
    name = max(errors, key=lambda key: errors[key])
    if errors[name] > tolerance:
        raise ExportError(
            f"{name} in onnxruntime differs from PyTorch by {errors[name]:.3g} beyond 1e-4 of its value: "
            "does forward do something else for another number of rows or steps?"
        )
    return errors[name]
