"""`:predict` of 64 texts of 16 to 512 characters, held against the best batches that a hand can make."""

from __future__ import annotations

import json
import random
import string
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.client import Figures, drive
from bench.floors.raw import Rate
from bench.measure import Goal, Plan, Rounds, Row, absolute, against, interleaved, spread
from bench.metrics import DIRECT, read_counts
from bench.processes import Running, server
from bench.raw import raw_sequences
from bench.sessions import MODEL

NAME = "predict-64-ragged"
GOAL = Goal("≥ 0.85 of raw onnxruntime on the best hand-made batches", 0.85)
PADDING_GOAL = Goal("steps computed on padding ≤ 5 %", 0.05, is_least=False)
TEXTS, SHORTEST, LONGEST = 64, 16, 512
LEAST_SECONDS = 2
PATH = f"/v1/models/{MODEL}:predict"


def predict_64_ragged(plan: Plan) -> Iterator[Row]:
    chance = random.Random(0)
    lengths = [chance.randint(SHORTEST, LONGEST) for _ in range(TEXTS)]
    texts = ["".join(chance.choices(string.ascii_lowercase + " ", k=length)) for length in lengths]
    steps = sum(lengths)
    with server(*plan.flags_of(NAME)) as serving, tempfile.NamedTemporaryFile("w", suffix=".json") as body:
        json.dump({"sequences": [{"text": text} for text in texts]}, body)
        body.flush()
        padding = _steps_of_one(serving, Path(body.name)) / steps - 1
        load = plan.load | {
            "seconds": max(plan.seconds, LEAST_SECONDS),
            "steps": steps,
            "path": PATH,
            "body": body.name,
        }
        rounds: Rounds[Figures | Rate] = interleaved(
            plan.rounds,
            {
                "server": lambda: drive("post", serving, load),
                "floor": lambda: raw_sequences(lengths, plan.seconds),
            },
        )
    yield against(NAME, "steps/s", GOAL, rounds, ("server", "floor"), _rate, steps_per_call=steps)
    yield absolute("predict-padding", "of the steps asked for", PADDING_GOAL, spread([padding]))


def _steps_of_one(serving: Running, body: Path) -> float:
    """The steps that the server computes for one call."""
    before = read_counts(serving)
    url = f"http://127.0.0.1:{serving.port('http')}{PATH}"
    with DIRECT.open(urllib.request.Request(url, body.read_bytes())) as reply:
        assert len(json.load(reply)["predictions"]) == TEXTS
    return read_counts(serving).since(before).steps


def _rate(figures: Figures | Rate) -> float:
    return figures.steps_per_s if isinstance(figures, Rate) else figures.steps_per_s_between
