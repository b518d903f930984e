"""Generation: 64 at once by temperature and top-p, whole replies over HTTP, held against onnxruntime at batch 64."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.client import Figures, drive
from bench.floors.raw import Rate
from bench.measure import Goal, Plan, Rounds, Row, against, interleaved
from bench.metrics import read_counts
from bench.processes import server
from bench.raw import raw_steps
from bench.sessions import MODEL

NAME = "generation-64"
GOAL = Goal("≥ 0.65 of raw onnxruntime steps/s at batch 64, replies returned whole", 0.65)
AT_ONCE = 64
LENGTHS = range(96, 160, 4)
"""Tokens of the replies, 126 on average: unequal ones, or all would end, and new ones begin, in the same tick."""
ASKED = {"text": "\n", "temperature": 0.8, "top_p": 0.95}
LEAST_SECONDS = 2


def generation_64(plan: Plan) -> Iterator[Row]:
    """Tokens that were sampled count as steps, the prompt's one step does not; streamed tokens are in the details."""
    with server(*plan.flags_of(NAME)) as serving, tempfile.TemporaryDirectory() as folder:
        load = plan.load | {"connections": AT_ONCE, "seconds": max(plan.seconds, LEAST_SECONDS)}
        whole = load | {"path": f"/v1/models/{MODEL}:generate", "body": _bodies(Path(folder)), "steps": LENGTHS}
        streamed = load | {"model": MODEL, "max_tokens": LENGTHS[len(LENGTHS) // 2]}
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
        _rate,
        streamed_per_s=rounds.median("streamed", _rate),
        streamed_ratio=rounds.ratio("streamed", "floor", _rate).median,
        rows_per_run=rows_per_run,
    )


def _rate(figures: Figures | Rate) -> float:
    return figures.steps_per_s if isinstance(figures, Rate) else figures.steps_per_s_between


def _bodies(folder: Path) -> list[str]:
    """A request for each of the lengths, as files."""
    files = [folder / f"{length}.json" for length in LENGTHS]
    for file, length in zip(files, LENGTHS, strict=True):
        file.write_text(json.dumps(ASKED | {"max_tokens": length}), encoding="utf-8")
    return [str(file) for file in files]
