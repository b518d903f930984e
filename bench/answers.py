"""Whether a server's answers are those of its model: the load client's dump, compared with onnxruntime run here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from bench.client import LoadError, Mode, Options, drive
from bench.processes import Running
from bench.raw import bundle_of
from tidegate.bundle import read_bundle
from tidegate.ort import onnxruntime

CHECK_SECONDS = 1.0
RELATIVE, ABSOLUTE = 1e-4, 1e-5

Answer = dict[str, Any]


def scheduled_token(session: int, step: int, vocabulary: int) -> int:
    """What the client gives its session number ``session`` as step ``step``; bench/client/work.cc has the same."""
    return (session * 7 + step * 13 + 5) % vocabulary


def check_answers(mode: Mode, target: Running, sessions: list[str], options: Options) -> int:
    """Step new sessions for a moment and compare the first's and last's answers; returns how many were compared.

    Raises:
        LoadError: An answer is not what the model says.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "answers"
        drive(mode, target, {**options, "warmup": 0, "seconds": CHECK_SECONDS, "dump": str(dump)}, sessions)
        answers = [json.loads(line) for line in dump.read_text(encoding="ascii").splitlines()]
    return compare(answers, bundle_of())


def compare(answers: Iterable[Answer], bundle: Path, vocabulary: int = 65) -> int:
    """Run each session's tokens through the graph at once; returns how many answers were found right.

    Raises:
        LoadError: One is wrong, or there are none.
    """

    def session_of(answer: Answer) -> int:
        return int(answer["session"])

    num_right = 0
    for session, group in groupby(sorted(answers, key=lambda item: (item["session"], item["step"])), session_of):
        found = list(group)
        tokens = [scheduled_token(session, step, vocabulary) for step in range(found[-1]["step"] + 1)]
        for answer, (chosen, probability, surprise) in zip(found, expected(bundle, tokens), strict=True):
            _must_equal(answer, {"id": chosen, "probability": probability, "surprise": surprise})
            num_right += 1
    if not num_right:
        raise LoadError("no answers to compare")
    return num_right


def _must_equal(answer: Answer, wanted: dict[str, float]) -> None:
    for name, value in wanted.items():
        if abs(answer[name] - value) > ABSOLUTE + RELATIVE * abs(value):
            raise LoadError(f"{name} is {answer[name]} and should be {value}: {answer}")


def expected(bundle: Path, tokens: list[int]) -> list[tuple[int, float, float]]:
    """After each token the most probable next one, its probability, and the token's surprise."""
    found = read_bundle(bundle)
    graph = onnxruntime.InferenceSession(found.graph, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {"tokens": np.array([tokens], np.int64)}
    for spec in found.manifest.states:
        feeds[spec.input] = np.zeros([1 if axis == "batch" else int(axis) for axis in spec.axes], np.float32)
    logits, surprise = graph.run(["logits", "surprise"], feeds)
    exponentials = np.exp(logits[0] - logits[0].max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return list(
        zip(probabilities.argmax(-1).tolist(), probabilities.max(-1).tolist(), surprise[0].tolist(), strict=True)
    )
