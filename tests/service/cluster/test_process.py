"""What a supervisor and its workers say to each other, and when it tries again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.cluster.control import (
    StartRefusal,
    Task,
    WorkerReady,
    decode_answer,
    decode_task,
    encode_answer,
    encode_task,
)
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.socket_folder import SocketPlace
from tidegate.cluster.supervisor import LONG_LIVED_SECONDS, PAUSES, Backoff
from tidegate.config import load_settings


@pytest.mark.parametrize("place", [SocketPlace(Path("/somewhere")), SocketPlace(None, "tidegate-a1b2")])
def test_a_task_arrives_as_it_was_sent_whatever_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: SocketPlace
) -> None:
    file = tmp_path / "tidegate.toml"
    file.write_text("[models.tiny]\nallow_batch_dependence = true\n")
    settings = load_settings(
        {"workers": 2, "max_rows": 7, "idle_seconds": "none", "http": "[::1]:80", "replica": "r"}, file
    )
    worker = WorkerInfo("r", 1, 2, *place)
    monkeypatch.setenv("TIDEGATE_MAX_ROWS", "9")
    monkeypatch.setenv("TIDEGATE_TTL_SECONDS", "5")
    task = decode_task(encode_task(Task(settings, worker)))
    assert task.worker == worker
    assert task.settings.model_dump() == settings.model_copy(update={"replica": "r-1"}).model_dump()


@pytest.mark.parametrize(
    "answer", [WorkerReady({"http": "http://h:1", "models": ["m/1"]}), StartRefusal("no such directory")]
)
def test_an_answer_arrives_as_it_was_sent(answer: WorkerReady | StartRefusal) -> None:
    line = encode_answer(answer)
    assert line.endswith(b"\n")
    assert decode_answer(line) == answer


def test_a_worker_that_keeps_dying_is_started_less_and_less_often() -> None:
    backoff = Backoff()
    assert [backoff.next(float(now)) for now in range(7)] == [*PAUSES, PAUSES[-1], PAUSES[-1]]


def test_a_worker_that_lived_long_is_started_soon() -> None:
    backoff = Backoff()
    for now in range(5):
        backoff.next(float(now))
    assert backoff.next(5 + LONG_LIVED_SECONDS) == PAUSES[0]
