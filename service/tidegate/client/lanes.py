"""What a columnar stream knows of its lanes, and its messages that are not answered. No I/O; see `flight`, its like.

The server remembers one chunk of each session. So a message waits while one of its lanes awaits an answer: whatever
is lost, every reply can be had again. Messages without a common lane overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tidegate.client.asking import attach_request
from tidegate.client.flight import MAX_IN_FLIGHT
from tidegate.v1 import predictor_pb2
from tidegate.wire.columns import AttachResult, ColumnsResult

ATTACH_AT_ONCE = 4096


@dataclass(slots=True, eq=False)
class Message:
    """Columns without an answer."""

    request: predictor_pb2.StreamRequest
    lanes: frozenset[int]


class Lanes:
    """The lanes of one stream: whose they are, where their sessions stand, and what is under way on them."""

    def __init__(self) -> None:
        self._sessions: dict[int, str] = {}
        self._positions: dict[int, int] = {}
        self._sent: deque[Message] = deque()
        self._held: deque[Message] = deque()

    def __len__(self) -> int:
        """How many messages are not answered."""
        return len(self._sent) + len(self._held)

    def attach(self, ids: Iterable[str], result: AttachResult) -> None:
        """Take note of lanes that were given to the sessions."""
        self._sessions.update(enumerate(ids, result.first_lane))
        self._positions.update(enumerate(result.positions, result.first_lane))

    def attach_again(self) -> Iterator[predictor_pb2.StreamRequest]:
        """What gives a new stream the lanes of the old."""
        run: list[int] = []
        for lane in sorted(self._sessions):
            if run and (lane != run[-1] + 1 or len(run) == ATTACH_AT_ONCE):
                yield attach_request(run[0], [self._sessions[each] for each in run])
                run = []
            run.append(lane)
        if run:
            yield attach_request(run[0], [self._sessions[each] for each in run])

    def add(self, request: predictor_pb2.StreamRequest) -> None:
        """Take in columns, with positions or without."""
        self._held.append(Message(request, frozenset(request.columns.lanes)))

    def release(self) -> Iterator[predictor_pb2.StreamRequest]:
        """The requests to send now, with positions."""
        while self._held and self._can_go(self._held[0]):
            message = self._held.popleft()
            columns = message.request.columns
            if not columns.positions:
                get = self._positions.get
                # A lane that nothing is known of is refused for itself, whatever its position.
                columns.positions.extend([get(lane, 0) for lane in columns.lanes])
            self._sent.append(message)
            yield message.request

    def _can_go(self, message: Message) -> bool:
        return len(self._sent) < MAX_IN_FLIGHT and all(message.lanes.isdisjoint(sent.lanes) for sent in self._sent)

    def lose(self) -> None:
        """The connection is lost: what was with the server is to be sent again."""
        self._held.extendleft(reversed(self._sent))
        self._sent.clear()

    def withdraw(self) -> None:
        """The newest, after a loss, is not to be sent: its sender was interrupted."""
        self._held.pop()

    def pop(self) -> None:
        """The oldest message is answered, or given up."""
        if self._sent:
            self._sent.popleft()
        else:
            self._held.popleft()

    def move(self, result: ColumnsResult) -> None:
        """Take note of where a message has brought its sessions."""
        self._positions.update(zip(result.lanes, result.positions, strict=True))
