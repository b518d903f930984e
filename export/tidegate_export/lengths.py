"""Parity at many lengths: what Python decides by the length of a sequence is frozen in the graph, and not to be seen.

PyTorch runs beginnings of one long sequence whole: of few steps, beyond what the graph looks back, and around each
whole number that the module's own code and attributes hold. The graph runs it once, in two chunks: whatever the length,
its outputs are the same up to there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType

import numpy as np
from torch import nn

from tidegate.bundle import Manifest
from tidegate.proof import ABSOLUTE, excess, is_rounding, rounding
from tidegate.reach import analyse
from tidegate.replay import GraphRunner, Result, Tensors, part, random_inputs
from tidegate_export.errors import ExportError

_LONGEST = 2049
"""Where the ladder ends."""
_MARGIN = 40
_MOST = 20_000
"""Whole numbers of the module above this are no lengths that anybody compares with."""
_SECONDS = 60.0
"""What all lengths of the ladder and of the code may take; those that the graph tells are always run."""
_OTHERS = ("torch.", "tidegate_export.", "tidegate_models.")

Run = Callable[[Tensors], Result]


def check_lengths(
    module: nn.Module, graph: bytes, runner: GraphRunner, run: Run, rng: np.random.Generator, tolerance: float
) -> list[float]:
    """Compare the graph with `run`, PyTorch over a whole row, at many lengths; return what differs, at most.

    Raises:
        ExportError: They differ at one of them.
    """
    manifest = runner.manifest
    found = analyse(graph, manifest)
    needed = sorted({min(number, _MOST) for number in (found.steps + _MARGIN, *(mark + 1 for mark in found.marks))})
    wanted = sorted({*_ladder(), *(length for n in literals(module) for length in _around(n))} - set(needed))
    steps = max([*needed, *wanted])
    row = random_inputs(manifest, 1, steps, rng, found.vocabularies)
    begun, chunks = time.monotonic(), [steps // 3, steps - steps // 3] if steps > 2 else [steps]
    whole = runner.walk(row, chunks)
    slack = rounding(runner, row, chunks, whole, rng) if len(chunks) > 1 else {}
    errors = []
    for length in (*needed, *wanted):
        if length in needed or time.monotonic() - begun < _SECONDS:
            beginning = runner.cut(row, 0, length)
            error, name = _differs(manifest, run(beginning), _up_to(runner, whole, beginning, length), slack)
            if error > tolerance:
                raise ExportError(
                    f"{name} in onnxruntime differs from PyTorch over a sequence of {length:,} steps, though not over "
                    "shorter ones: does the module's code decide by the length? Write it so that every step does the "
                    "same, however long the sequence"
                )
            errors.append(error)
    return errors


def literals(module: nn.Module) -> set[int]:
    """Return the whole numbers in a module's own code, and in its attributes and those of its classes."""
    found: set[int] = set()
    for each in module.modules():
        own = [kind for kind in type(each).__mro__ if not f"{kind.__module__}.".startswith((*_OTHERS, "builtins."))]
        if not own:
            continue
        values = [*vars(each).values(), *(value for kind in own for value in vars(kind).values())]
        for function in (value for value in values if isinstance(value, FunctionType)):
            values += _constants(function.__code__)
            values += [function.__globals__.get(name) for name in function.__code__.co_names]
        found.update(value for value in values if type(value) is int and 1 < value < _MOST)
    return found


def _around(number: int) -> range:
    """Return the lengths to try for a whole number of the code: above 256, only one above it."""
    return range(number + (number > 256), number + 2)


def _constants(code: CodeType) -> Iterator[object]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _constants(constant)
        elif isinstance(constant, tuple | frozenset):
            yield from constant
        else:
            yield constant


def _ladder() -> set[int]:
    """Return lengths up to 17, then one beyond each power of two: above 256 each run is dear."""
    return {*range(1, 10), *range(15, 18), 31, 32, 33, 65, 129, 257, _LONGEST}


def _up_to(runner: GraphRunner, whole: Result, beginning: Tensors, length: int) -> Tensors:
    """Return the graph's outputs over a beginning; one that is not per step needs a run of its own."""
    specs = runner.manifest.outputs
    if any(spec.time_axis is None for spec in specs):
        return runner.walk(beginning, [length]).outputs
    return {spec.name: part(whole.outputs[spec.name], spec.time_axis, 0, length) for spec in specs}


def _differs(manifest: Manifest, expected: Result, found: Tensors, slack: Mapping[str, float]) -> tuple[float, str]:
    """Return the largest |Δ| - 1e-4·|x|, and of which output; what rounding makes of it by then is none."""
    errors = {
        spec.name: excess(expected.outputs[spec.name], found[spec.name])
        for spec in manifest.outputs
        if not is_rounding(expected.outputs[spec.name], found[spec.name], slack.get(spec.name, 0.0))
    }
    name = max(errors, key=lambda key: errors[key], default="")
    return errors.get(name, -ABSOLUTE), name
