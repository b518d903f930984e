"""The last replies of ephemeral sequences: found for an hour, and bounded in bytes."""

from __future__ import annotations

import numpy as np

from tidegate.api import Prediction, StepResult, Tensor
from tidegate.engine.session import LastReply
from tidegate.sessions.last_replies import LastReplies, Remembered


def remembered(num_bytes: int = 0) -> Remembered:
    outputs: dict[str, Tensor] = {"y": np.zeros(num_bytes, np.uint8)}
    return Remembered("1", LastReply(0, "name", StepResult("s", 1, Prediction(1, outputs=outputs))))


def test_what_ended_within_the_hour_is_found() -> None:
    replies, kept = LastReplies(), remembered()
    replies.put("s", kept, now=10.0)
    assert replies.find("s", 3609.0) is kept
    assert replies.find("s", 3610.0) is None
    assert replies.find("other", 10.0) is None
    replies.discard("s")
    assert replies.find("s", 10.0) is None


def test_the_oldest_are_forgotten_where_they_are_too_many_bytes() -> None:
    replies = LastReplies(max_bytes=10_000)
    for number in range(5):
        replies.put(f"s{number}", remembered(2_000), now=float(number))
    assert [number for number in range(5) if replies.find(f"s{number}", 5.0)] == [2, 3, 4]
    replies.put("s3", remembered(), now=5.0)
    replies.put("s5", remembered(4_000), now=5.0)
    assert [number for number in range(6) if replies.find(f"s{number}", 5.0)] == [3, 4, 5]
    replies.put("large", remembered(20_000), now=6.0)
    assert not any(replies.find(name, 6.0) for name in ("s3", "s4", "s5", "large"))


def test_the_old_leave_as_new_ones_come() -> None:
    replies = LastReplies()
    replies.put("old", remembered(), now=0.0)
    replies.put("new", remembered(), now=3600.0)
    assert replies.find("old", 3599.0) is None
