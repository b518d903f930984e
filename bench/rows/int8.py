"""The int8 bundle, held against the fp32 one it was made from: rows of onnxruntime, 64 at a time."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Goal, Plan, Row, against, interleaved, skipped
from bench.processes import BUNDLES
from bench.raw import bundle_of, raw_steps
from bench.sessions import MODEL

NAME = "int8"
GOAL = Goal("≥ 1.8 times the fp32 rows/s", 1.8)
BATCH = 64


def int8(plan: Plan) -> Iterator[Row]:
    """Only the rate; how much worse it predicts, `tidegate quantize` writes into the bundle's card."""
    model = f"{MODEL}-int8"
    if not (BUNDLES / model).is_dir():
        yield skipped(NAME, "steps/s", GOAL.text, f"no int8 bundle: there is no bundles/{model}")
        return
    rounds = interleaved(
        plan.rounds,
        {
            "int8": lambda: raw_steps(BATCH, plan.seconds, bundle=bundle_of(model)),
            "fp32": lambda: raw_steps(BATCH, plan.seconds),
        },
    )
    yield against(NAME, "steps/s", GOAL, rounds, ("int8", "fp32"), lambda rate: rate.steps_per_s)
