"""The usual last reply of a durable session, encoded quickly: one predicted token and a surprise.

Fills one set of messages again and again, where `records` makes seven for each step. Measured in process, best of seven
(`timeit`, 20,000 calls): 5.4 µs against 16.0 µs, which is 9 % of a durable step in a batch of 128 on that machine
(120 µs of CPU). Equal bytes: `tests/service/sessions/test_fast_last_reply.py`.
"""

from __future__ import annotations

from tidegate.api import Prediction, StepResult
from tidegate.engine.session import LastReply
from tidegate.v1 import records_pb2


class FastLastReply:
    """Messages for one step at a time; each call replaces what the last one wrote."""

    def __init__(self) -> None:
        self._body = records_pb2.SessionBody()
        self._last = self._body.last
        self._prediction = self._last.step.prediction
        self._candidate = self._prediction.next.add().candidates.add()
        self._surprise = self._prediction.surprise

    def encode(self, last: LastReply) -> bytes | None:
        """Return the body's field of the last reply, as protobuf would write it; None of an unusual step."""
        start, fingerprint, result = last
        if not isinstance(result, StepResult) or not _is_usual(prediction := result.prediction):
            return None
        assert prediction.next is not None
        assert prediction.surprise is not None
        assert isinstance(fingerprint, bytes)
        kept, candidate, surprise = self._last, self._candidate, self._surprise
        kept.start, kept.fingerprint, kept.every_step = start, fingerprint, prediction.every_step
        self._prediction.length = prediction.length
        candidate.token, candidate.id, candidate.probability = prediction.next[0][0]
        surprise.mean, surprise.unit, _ = prediction.surprise
        return self._body.SerializeToString()


def _is_usual(prediction: Prediction) -> bool:
    following, surprise = prediction.next, prediction.surprise
    if following is None or surprise is None or surprise.steps:
        return False
    if prediction.forecast is not None or prediction.outputs is not None or prediction.drift is not None:
        return False
    return len(following) == 1 and len(following[0]) == 1
