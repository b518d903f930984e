"""Messages between the supervisor and a worker, one each way over a socket pair.

The supervisor sends the settings and the worker's identity. The worker answers that it is ready, or why it cannot
start. The pair then stays open while both live: its end tells each that the other is gone.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tidegate.cluster.info import WorkerInfo
from tidegate.config import Settings, load_settings


class Task(NamedTuple):
    """Settings and identity of a worker to start."""

    settings: Settings
    worker: WorkerInfo


class WorkerReady(NamedTuple):
    """The worker is ready; ``facts`` are those that `tidegate.server` announces."""

    facts: dict[str, Any]


class StartRefusal(NamedTuple):
    """The worker cannot start."""

    message: str


def encode_task(task: Task) -> bytes:
    worker = task.worker
    place = asdict(worker) | {"folder": None if worker.folder is None else str(worker.folder)}
    return _line({"settings": task.settings.model_dump(mode="json"), "worker": place})


def decode_task(line: bytes) -> Task:
    """The inverse of `encode_task`; the settings carry the worker's own replica name."""
    message = json.loads(line)
    place = message["worker"]
    worker = WorkerInfo(**place | {"folder": None if place["folder"] is None else Path(place["folder"])})
    # Every setting is given, so none is taken from this process's environment.
    settings = load_settings(message["settings"])
    return Task(settings.model_copy(update={"replica": worker.name}), worker)


def encode_answer(answer: WorkerReady | StartRefusal) -> bytes:
    return _line({"facts": answer.facts} if isinstance(answer, WorkerReady) else {"refusal": answer.message})


def decode_answer(line: bytes) -> WorkerReady | StartRefusal:
    """The inverse of `encode_answer`."""
    message = json.loads(line)
    return WorkerReady(message["facts"]) if "facts" in message else StartRefusal(message["refusal"])


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
