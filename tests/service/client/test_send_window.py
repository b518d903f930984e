"""What goes out when, at which position, and what after a loss: against a server that is made of a position."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.api import SessionInfo
from tidegate.client.send_window import (
    ATTACH_AT_ONCE,
    MAX_IN_FLIGHT,
    LaneWindow,
    ReplyLostError,
    SendWindow,
    default_overlap,
)
from tidegate.errors import PositionConflictError, TidegateError
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.columns import AttachResult


class Server:
    """A session that remembers its last chunk."""

    def __init__(self) -> None:
        self.position = 0
        self.applied: list[str] = []
        self._last: tuple[int, str] | None = None

    def step(self, message: sessions_pb2.StepRequest) -> int | PositionConflictError:
        """The position after the chunk."""
        if (message.position, message.text) == self._last:
            return self.position
        if message.position != self.position:
            return PositionConflictError("elsewhere", position=self.position)
        self._last = self.position, message.text
        self.position += len(message.text)
        self.applied.append(message.text)
        return self.position


CHUNKS = st.lists(st.text("ab", min_size=1, max_size=3), max_size=12)


@given(CHUNKS, st.integers(1, 5), st.data())
def test_whatever_is_lost_and_when_each_chunk_is_applied_once_in_order(
    chunks: list[str], overlap: int, data: st.DataObject
) -> None:
    server, window = Server(), SendWindow(overlap)
    requests: deque[sessions_pb2.StepRequest] = deque()
    replies: deque[int | PositionConflictError] = deque()
    position, told = 0, []
    for text in chunks:
        window.add(sessions_pb2.StepRequest(text=text), len(text))
    while len(window):
        requests.extend(window.release(position))
        match data.draw(st.sampled_from(["serve", "answer", "lose"])):
            case "serve" if requests:
                replies.append(server.step(requests.popleft()))
            case "answer" if replies:
                chunk, reply = window.pop(), replies.popleft()
                if isinstance(reply, PositionConflictError):
                    assert window.is_reply_lost(chunk, reply)
                    assert overlap > 1
                    assert chunk.end is not None
                    reply = chunk.end
                position = reply
                told.append(position)
            case "lose":
                requests.clear()
                replies.clear()
                window.lose()
    assert server.applied == chunks
    assert told == [sum(map(len, chunks[: number + 1])) for number in range(len(chunks))]


def can_repeat(window: SendWindow) -> bool:
    return window.can_repeat


def message(text: str) -> sessions_pb2.StepRequest:
    return sessions_pb2.StepRequest(text=text)


def test_no_more_than_the_overlap_is_with_the_server() -> None:
    window = SendWindow(2)
    for text in ("a", "bb", "c"):
        window.add(message(text), len(text))
    assert [each.position for each in window.release(5)] == [5, 6]
    assert list(window.release(5)) == []
    window.pop()
    assert [each.position for each in window.release(6)] == [8]
    with pytest.raises(ValueError, match="at least 1"):
        SendWindow(0)


def test_a_chunk_at_an_unknown_position_goes_alone_and_once() -> None:
    window = SendWindow(3)
    window.add(message("a"), 1)
    window.add(message("b"), 1)
    assert [each.HasField("position") for each in window.release(None)] == [False]
    assert list(window.release(None)) == []
    assert can_repeat(window) is False
    window.pop()
    assert can_repeat(window) is True
    assert [each.position for each in window.release(9)] == [9]
    assert can_repeat(window) is True


def test_after_a_refusal_new_chunks_go_where_the_session_is() -> None:
    window = SendWindow(3)
    for text in ("a", "b"):
        window.add(message(text), 1)
    assert [each.position for each in window.release(0)] == [0, 1]
    window.pop()
    window.add(message("c"), 1)
    assert [each.position for each in window.release(0)] == [0]


@pytest.mark.parametrize(
    "error",
    [
        PositionConflictError("another client is ahead", position=9),
        PositionConflictError("nothing was applied", position=0),
        TidegateError("another error"),
    ],
)
def test_other_errors_of_a_repeat_lose_no_reply(error: TidegateError) -> None:
    window = SendWindow(2)
    for text in ("a", "b"):
        window.add(message(text), 1)
    list(window.release(0))
    window.lose()
    list(window.release(0))
    assert not window.is_reply_lost(window.pop(), error)


def test_a_conflict_of_a_first_try_loses_no_reply() -> None:
    window = SendWindow(2)
    for text in ("a", "b"):
        window.add(message(text), 1)
    list(window.release(0))
    assert not window.is_reply_lost(window.pop(), PositionConflictError("there", position=2))


def test_one_chunk_of_a_durable_session_is_with_the_server() -> None:
    info = SessionInfo("a", "m", "1", 0, durable=True, created_at=0, expires_at=None, state_bytes=8)
    assert default_overlap(info) == 1
    assert default_overlap(info._replace(durable=False)) == MAX_IN_FLIGHT


def test_a_lost_reply_tells_where_the_session_is() -> None:
    error = ReplyLostError(7)
    assert (error.reason, error.position, error.details) == ("REPLY_LOST", 7, {"position": "7"})


# ---- lanes


def columns(*lanes: int) -> predictor_pb2.StreamRequest:
    return predictor_pb2.StreamRequest(columns=predictor_pb2.Columns(lanes=lanes, tokens=[0] * len(lanes)))


def positions(lanes: LaneWindow) -> list[list[int]]:
    return [list(each.columns.positions) for each in lanes.release()]


def test_columns_wait_for_their_lanes_and_for_those_before_them() -> None:
    lanes = LaneWindow()
    lanes.attach(["a", "b", "c"], AttachResult(0, [4, 5, 6], {}))
    for request in (columns(0, 1), columns(2), columns(1, 2), columns(0)):
        lanes.add(request)
    assert positions(lanes) == [[4, 5], [6]]
    lanes.pop()
    assert positions(lanes) == []
    lanes.pop()
    assert positions(lanes) == [[5, 6], [4]]
    assert len(lanes) == 2


def test_what_is_sent_again_keeps_its_positions_and_its_place() -> None:
    lanes = LaneWindow()
    lanes.attach(["a", "b"], AttachResult(0, [4, 5], {}))
    for lane in (0, 1, 0):
        lanes.add(columns(lane))
    assert positions(lanes) == [[4], [5]]
    lanes.lose()
    lanes.attach(["a", "b"], AttachResult(0, [9, 9], {}))
    assert positions(lanes) == [[4], [5]]


def test_positions_of_the_caller_are_left_alone() -> None:
    lanes = LaneWindow()
    request = columns(0)
    request.columns.positions.append(3)
    lanes.add(request)
    assert positions(lanes) == [[3]]


def test_lanes_are_attached_again_in_runs() -> None:
    lanes = LaneWindow()
    lanes.attach([f"s{number}" for number in range(ATTACH_AT_ONCE + 1)], AttachResult(2, [], {}))
    lanes.attach(["x"], AttachResult(0, [], {}))
    lanes.attach(["y"], AttachResult(3, [], {}))
    runs = [(each.attach.first_lane, len(each.attach.sessions)) for each in lanes.attach_again()]
    assert runs == [(0, 1), (2, ATTACH_AT_ONCE), (2 + ATTACH_AT_ONCE, 1)]
    assert next(iter(list(lanes.attach_again())[1].attach.sessions)) == "s0"
    assert list(lanes.attach_again())[1].attach.sessions[1] == "y"
