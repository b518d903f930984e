"""The graph with a state for each session, as the applications behind every peer share it: onnxruntime and numpy alone.

Knows nothing of servers or of tidegate. A session begins with its first step and is kept until the process ends; its
steps come one after another, so it is in a batch once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before it is imported: as tidegate has it, which is not installed here
import onnxruntime

MODEL = Path(__file__).parents[2] / "bundles" / "shakespeare-lstm" / "1" / "model.onnx"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answer:
    """After a step: where the session is, the most probable next token, and how unexpected the step was (bits)."""

    position: int
    id: int
    probability: float
    surprise: float


class Lstm:
    """A loaded graph and its sessions: their positions and states h, c, each [2, 256]."""

    def __init__(self) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.inter_op_num_threads = 1
        self._graph = onnxruntime.InferenceSession(str(MODEL), settings, ["CPUExecutionProvider"])
        self._new = (0, np.zeros((2, 256), np.float32), np.zeros((2, 256), np.float32))
        self._sessions: dict[str, tuple[int, Array, Array]] = {}

    def step(self, session: str, token: int) -> Answer:
        return self.step_many([(session, token)])[0]

    def step_many(self, steps: Sequence[tuple[str, int]]) -> list[Answer]:
        """Step different sessions by a token each, in one run."""
        befores = [self._sessions.get(session, self._new) for session, _ in steps]
        feeds = {
            "tokens": np.array([[token] for _, token in steps], np.int64),
            "h_in": np.stack([h for _, h, _ in befores], axis=1),
            "c_in": np.stack([c for _, _, c in befores], axis=1),
        }
        logits, surprise, h, c = self._graph.run(["logits", "surprise", "h_out", "c_out"], feeds)
        for row, ((session, _), (position, _, _)) in enumerate(zip(steps, befores, strict=True)):
            self._sessions[session] = (position + 1, h[:, row], c[:, row])
        return _answers([position + 1 for position, _, _ in befores], logits[:, 0], surprise[:, 0])


def _answers(positions: Sequence[int], logits: Array, surprise: Array) -> list[Answer]:
    """Read ``logits`` [rows, vocabulary] and ``surprise`` [rows]."""
    best = logits.max(axis=-1, keepdims=True)
    probabilities = 1 / np.exp(logits - best).sum(axis=-1)
    columns = (logits.argmax(axis=-1).tolist(), probabilities.tolist(), surprise.tolist())
    return [Answer(*answer) for answer in zip(positions, *columns, strict=True)]
