"""What is remembered of sessions that ended: for an hour, and bounded in number and bytes."""

from __future__ import annotations

import numpy as np

from tidegate.api import Prediction, StepResult, Tensor
from tidegate.engine.session import LastReply
from tidegate.sessions.endings import Endings, Remembered


def put(replies: Endings[str, Remembered], session: str, kept: Remembered, now: float) -> None:
    replies.put(session, kept, now, kept.num_bytes)


def remembered(num_bytes: int = 0) -> Remembered:
    outputs: dict[str, Tensor] = {"y": np.zeros(num_bytes, np.uint8)}
    return Remembered("1", LastReply(0, "name", StepResult("s", 1, Prediction(1, outputs=outputs))))


def test_what_ended_within_the_hour_is_found() -> None:
    replies, kept = Endings[str, Remembered](), remembered()
    put(replies, "s", kept, 10.0)
    assert replies.find("s", 3609.0) is kept
    assert replies.find("s", 3610.0) is None
    assert replies.find("other", 10.0) is None
    replies.discard("s")
    assert replies.find("s", 10.0) is None


def test_the_oldest_are_forgotten_where_they_are_too_many_bytes() -> None:
    replies = Endings[str, Remembered](max_bytes=10_000)
    for number in range(5):
        put(replies, f"s{number}", remembered(2_000), float(number))
    assert [number for number in range(5) if replies.find(f"s{number}", 5.0)] == [2, 3, 4]
    put(replies, "s3", remembered(), 5.0)
    put(replies, "s5", remembered(4_000), 5.0)
    assert [number for number in range(6) if replies.find(f"s{number}", 5.0)] == [3, 4, 5]
    put(replies, "large", remembered(20_000), 6.0)
    assert not any(replies.find(name, 6.0) for name in ("s3", "s4", "s5", "large"))


def test_the_old_leave_as_new_ones_come() -> None:
    replies = Endings[str, Remembered]()
    put(replies, "old", remembered(), 0.0)
    put(replies, "new", remembered(), 3600.0)
    assert replies.find("old", 3599.0) is None


def test_so_many_are_remembered_and_how_long_ago_they_ended() -> None:
    endings = Endings[str, None](max_number=2)
    for number in range(3):
        endings.put(f"s{number}", None, float(number))
    assert [endings.seconds_since(f"s{number}", 10.0) for number in range(3)] == [None, 9.0, 8.0]
    endings.put("s1", None, 10.0)
    assert [endings.seconds_since(name, 10.0) for name in ("s1", "s2")] == [0.0, 8.0]
