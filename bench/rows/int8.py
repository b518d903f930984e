"""int8 held against the fp32 bundle it is made from: rows of onnxruntime, 64 at a time, and what it costs in bits.

The table's row is the default method, fixed scales; dynamic scales stand beside it in the details, where the model
bears them: the streaming proof may refuse what they make of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.measure import Goal, Plan, Row, against, interleaved
from bench.raw import bundle_of, raw_steps
from tidegate_export.errors import ExportError
from tidegate_export.quantize import Quantized, QuantizeRequest, quantize_bundle
from tidegate_export.quantize_methods import Method

NAME = "int8"
GOAL = Goal("≥ 1.8 times the fp32 rows/s, ≤ 0.02 bits/character worse", 1.8)
MOST_BITS = 0.02
BATCH = 64


def int8(plan: Plan) -> Iterator[Row]:
    """The rate by the raw runtime; bits per character as `tidegate quantize` finds them on the held-out plays."""
    details: dict[str, float | bool | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {"static": _made("static", Path(folder))}
        try:
            made["dynamic"] = _made("dynamic", Path(folder))
        except ExportError as error:
            details["dynamic_refused"] = str(error)
        runs = {method: partial(raw_steps, BATCH, plan.seconds, bundle=of.path) for method, of in made.items()}
        rounds = interleaved(plan.rounds, {**runs, "fp32": partial(raw_steps, BATCH, plan.seconds)})
    for method, of in made.items():
        details |= {f"{method}_{key}": value for key, value in _facts(of).items()}
    if "dynamic" in made:
        details["dynamic_ratio"] = rounds.ratio("dynamic", "fp32", lambda rate: rate.steps_per_s).median
    row = against(NAME, "steps/s", GOAL, rounds, ("static", "fp32"), lambda rate: rate.steps_per_s, **details)
    yield _judged(row, made["static"])


def _made(method: Method, folder: Path) -> Quantized:
    return quantize_bundle(QuantizeRequest(bundle_of(), method, name=method, out=folder, seconds=0))


def _facts(made: Quantized) -> dict[str, float | bool]:
    score = made.figures.score
    facts: dict[str, float | bool] = {"batch_invariant": made.manifest.batch_invariant}
    return facts if score is None else {**facts, "bits_more": score.quantized - score.source}


def _judged(row: Row, made: Quantized) -> Row:
    """Count the bits too: a fast model that predicts worse misses the target."""
    score = made.figures.score
    if score is None:
        return replace(row, note=f"bits per character were not taken: {made.figures.unscored}")
    is_near = score.quantized - score.source <= MOST_BITS
    note = f"{score.source:.4f} → {score.quantized:.4f} bits per character on held-out text"
    return replace(row, met=bool(row.met) and is_near, note=note)
