"""Proves graphs that round more coarsely than fp32: fp16, or int8 scales."""

from __future__ import annotations

import math
from collections.abc import Callable

from tidegate.bundle import MOST_TOLERANCE, Manifest, Proof
from tidegate.errors import BundleError
from tidegate.proof import ABSOLUTE, prove

SEEDS = range(3)

HALF_TOLERANCE = 0.01
"""What fp16 may change in a row's result when its neighbours change, or when another runtime computes it."""


def prove_rounded(
    graph: bytes, manifest: Manifest, *, reach: int | None = None, most: Callable[[], float] | None = None
) -> Proof:
    """Prove within the power of ten above twice what several proofs saw.

    Args:
        graph: The content of an ONNX file.
        manifest: What it is to be.
        reach: As `tidegate.proof.prove` takes it.
        most: Returns what rounding can explain; asked only if the proofs saw any. None sets no bound.

    Raises:
        BundleError: As `prove` does, or they saw more than that.
    """
    errors = [prove(graph, manifest, seed=seed, tolerance=MOST_TOLERANCE, reach=reach).max_error for seed in SEEDS]
    worst = max(errors)
    if worst <= ABSOLUTE:
        return prove(graph, manifest, reach=reach)
    if most is not None and worst > (bound := most()):
        raise BundleError(
            f"cannot stream: between one chunk and several it differs by {worst:.2g}, and rounding explains "
            f"{bound:.2g} at most: a memory that is not among the states, or a scale that is taken over all steps",
            reason="NOT_STREAMABLE",
        )
    power = 10.0 ** math.ceil(math.log10(2 * worst))
    return prove(graph, manifest, tolerance=min(power, MOST_TOLERANCE), reach=reach)
