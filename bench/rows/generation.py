"""Generation: 64 at once by temperature and top-p, whole replies over HTTP, held against onnxruntime at batch 64."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator

from bench.client import Figures, drive
from bench.floors.raw import Rate
from bench.measure import Goal, Plan, Rounds, Row, against, interleaved
from bench.metrics import read_counts
from bench.processes import server
from bench.raw import raw_steps
from bench.sessions import MODEL

NAME = "generation-64"
GOAL = Goal("≥ 0.7 of raw onnxruntime steps/s at batch 64, replies returned whole", 0.7)
AT_ONCE, TOKENS = 64, 128
BODY = {"text": "\n", "max_tokens": TOKENS, "temperature": 0.8, "top_p": 0.95}


def generation_64(plan: Plan) -> Iterator[Row]:
    """Tokens that were sampled count as steps, the prompt's one step does not; streamed tokens are in the details."""
    with server(*plan.flags_of(NAME)) as serving, tempfile.NamedTemporaryFile("w", suffix=".json") as body:
        json.dump(BODY, body)
        body.flush()
        load = plan.load | {"connections": AT_ONCE}
        whole = load | {"path": f"/v1/models/{MODEL}:generate", "body": body.name, "steps": TOKENS}
        streamed = load | {"model": MODEL, "max_tokens": TOKENS}
        before = read_counts(serving)
        rounds: Rounds[Figures | Rate] = interleaved(
            plan.rounds,
            {
                "server": lambda: drive("post", serving, whole),
                "floor": lambda: raw_steps(AT_ONCE, plan.seconds),
                "streamed": lambda: drive("generate", serving, streamed),
            },
        )
        rows_per_run = read_counts(serving).since(before).rows_per_run
    yield against(
        NAME,
        "tokens/s",
        GOAL,
        rounds,
        ("server", "floor"),
        lambda figures: figures.steps_per_s,
        streamed_per_s=rounds.median("streamed", lambda figures: figures.steps_per_s),
        streamed_ratio=rounds.ratio("streamed", "floor", lambda figures: figures.steps_per_s).median,
        rows_per_run=rows_per_run,
    )
