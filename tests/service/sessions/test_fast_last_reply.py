from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.api import Candidate, Drift, Forecast, Prediction, StepResult, Surprise
from tidegate.engine.request import Transcript
from tidegate.engine.session import Head, LastReply
from tidegate.sessions.fast_last_reply import FastLastReply
from tidegate.sessions.records import Record, encode_step, last_reply
from tidegate.v1 import records_pb2
from tidegate.wire.predictions import fill_step

ENCODER = FastLastReply()
"""One for all examples: what an earlier step left would show in a later one."""

NATURAL = st.integers(0, 2**63 - 1)
FLOATS = st.floats(width=32, allow_nan=False)
USUAL = Prediction(1, next=[[Candidate("e", 43, 0.5)]], surprise=Surprise(1.5, "bits/token"))


@st.composite
def usual_replies(draw: st.DrawFn) -> LastReply:
    candidate = Candidate(draw(st.text(max_size=3)), draw(NATURAL), draw(FLOATS))
    surprise = Surprise(draw(FLOATS), draw(st.text(max_size=5)))
    prediction = Prediction(draw(NATURAL), draw(st.booleans()), next=[[candidate]], surprise=surprise)
    result = StepResult(draw(st.text(max_size=9)), draw(NATURAL), prediction)
    return LastReply(draw(NATURAL), draw(st.binary(max_size=32)), result)


@given(usual_replies())
def test_a_usual_step_is_what_filling_new_messages_gives(last: LastReply) -> None:
    whole = records_pb2.SessionBody()
    assert isinstance(last.fingerprint, bytes)
    whole.last.start, whole.last.fingerprint = last.start, last.fingerprint
    fill_step(whole.last.step, last.result._replace(session="", position=0))
    whole.last.every_step = last.result.prediction.every_step
    assert ENCODER.encode(last) == whole.SerializeToString()


@pytest.mark.parametrize(
    "prediction",
    [
        Prediction(1),
        replace(USUAL, surprise=None),
        replace(USUAL, surprise=Surprise(1.5, "bits/token", [1.5])),
        replace(USUAL, next=[[Candidate("e", 43, 0.5), Candidate("a", 39, 0.25)]]),
        replace(USUAL, next=[[Candidate("e", 43, 0.5)], [Candidate("a", 39, 0.25)]], length=2),
        replace(USUAL, next=None, forecast=[Forecast((0.5,), [[1.0]])]),
        replace(USUAL, outputs={"logits": np.zeros((1, 2), np.float32)}),
        replace(USUAL, drift=Drift("normal", 1.5, 3)),
    ],
)
def test_an_unusual_step_is_stored_whole_all_the_same(prediction: Prediction) -> None:
    last = LastReply(3, b"fingerprint", StepResult("s", 4, prediction))
    assert ENCODER.encode(last) is None
    assert _stored(last).prediction.next == prediction.next
    assert _stored(last).prediction.drift == prediction.drift


def test_a_generation_is_no_step() -> None:
    assert ENCODER.encode(LastReply(3, b"fingerprint", Transcript())) is None


def test_a_usual_step_is_read_back_from_a_record() -> None:
    assert _stored(LastReply(3, b"fingerprint", StepResult("s", 4, USUAL))) == StepResult("s", 4, USUAL)


def _stored(last: LastReply) -> StepResult:
    """What is read of a session at position 4."""
    _, encoded = encode_step(Head(0, b"", b""), b"revision", 4, 1.0, b"state", last)
    record = Record(records_pb2.SessionSummary(id="s", position=4), records_pb2.SessionBody.FromString(encoded))
    found = last_reply(record)
    assert found is not None
    assert record.body.state == b"state"
    assert isinstance(found.result, StepResult)
    return found.result
