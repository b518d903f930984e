"""Proves graphs that round more coarsely than fp32: fp16, or int8 scales."""

from __future__ import annotations

import math

from tidegate.bundle import MOST_TOLERANCE, Manifest, Proof
from tidegate.proof import ABSOLUTE, prove

SEEDS = range(3)

HALF_TOLERANCE = 0.01
"""What fp16 may change in a row's result when its neighbours change, or when another runtime computes it."""


def prove_rounded(graph: bytes, manifest: Manifest, *, reach: int | None = None) -> Proof:
    """Prove within the power of ten above twice what several proofs saw; `reach` as `tidegate.proof.prove` takes it.

    Raises:
        BundleError: As `prove` does.
    """
    errors = [prove(graph, manifest, seed=seed, tolerance=MOST_TOLERANCE, reach=reach).max_error for seed in SEEDS]
    worst = max(errors)
    if worst <= ABSOLUTE:
        return prove(graph, manifest, reach=reach)
    power = 10.0 ** math.ceil(math.log10(2 * worst))
    return prove(graph, manifest, tolerance=min(power, MOST_TOLERANCE), reach=reach)
