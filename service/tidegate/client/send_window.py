"""The messages of a stream that are not answered: what may be sent now, and what is sent again after a loss. No I/O.

Both kinds of stream, of the asyncio and of the blocking client, stand on this: `SendWindow` for one session,
`LaneWindow` for many sessions in columns.

Theory of operation. Every chunk carries the position that the session will have before it: the last one told, plus
the steps in flight. A character of a text is one step, as are a token and a row of values. After a loss everything
that is not answered goes out again, oldest first, at the same positions: what the server had applied is answered from
its memory, the rest applies now. The server remembers the last chunk only. So with ``overlap`` 1 every reply can be
had; with more, a chunk that was applied together with one behind it cannot be answered any more. It has not been
applied twice, nor skipped: its repeat is a conflict at the end of a later repeat, and `ReplyLostError` says so.

In columns a message waits while one of its lanes awaits an answer, so every reply can be had again. Messages without a
common lane overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from tidegate.api import SessionInfo
from tidegate.client.requests import attach_request
from tidegate.errors import PositionConflictError, TidegateError
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.columns import AttachResult, ColumnsResult

MAX_IN_FLIGHT = 32
"""A server reads no further while so many messages of a stream wait."""

ATTACH_AT_ONCE = 4096


class ReplyLostError(TidegateError):
    """The step was applied, once, but its reply went down with the connection; ``position`` is the session's after it.

    Steps that overlap can meet this, for the server remembers the reply to a session's last chunk only; and large
    replies, for which it has a budget (docs/limits.md).
    """

    default_reason = "REPLY_LOST"

    def __init__(self, position: int) -> None:
        message = f"the chunk up to position {position} was applied, but its reply is lost"
        super().__init__(message, details={"position": str(position)})
        self.position = position


@dataclass(slots=True, eq=False)
class Chunk:
    """A step's request without an answer. ``position`` and ``end``, the position after, are None while not known."""

    message: sessions_pb2.StepRequest
    length: int
    position: int | None = None
    is_repeat: bool = False

    @property
    def end(self) -> int | None:
        return None if self.position is None else self.position + self.length


@dataclass(slots=True, eq=False)
class Columns:
    """A columnar request without an answer."""

    request: predictor_pb2.StreamRequest
    lanes: frozenset[int]


Message = TypeVar("Message", Chunk, Columns)


class Window(Generic[Message]):
    """Messages without an answer, in the order of their sending: some are with the server, the others are held back."""

    def __init__(self) -> None:
        self._sent: deque[Message] = deque()
        self._held: deque[Message] = deque()

    def __len__(self) -> int:
        """How many messages are not answered."""
        return len(self._sent) + len(self._held)

    def pop(self) -> Message:
        """Remove the oldest message: it is answered, or given up."""
        return self._sent.popleft() if self._sent else self._held.popleft()

    def lose(self) -> None:
        """Hold everything that was with the server, to send it again: the connection is lost."""
        self._held.extendleft(reversed(self._sent))
        self._sent.clear()

    def withdraw(self) -> None:
        """Remove the newest message, after a loss: its sender was interrupted."""
        self._held.pop()

    def require_none_in_flight(self) -> None:
        """Raise unless all replies were received: they come in order, so only then can a call await its own."""
        if self:
            raise RuntimeError(f"{len(self)} replies are in flight: receive them first")

    def require_in_flight(self) -> None:
        """Raise if nothing was sent: a receiver would wait for ever."""
        if not self:
            raise RuntimeError("no reply is in flight: send first")


class SendWindow(Window[Chunk]):
    """The chunks of one session; at most ``overlap`` are with the server."""

    def __init__(self, overlap: int) -> None:
        if overlap < 1:
            raise ValueError(f"overlap must be at least 1, got {overlap}")
        super().__init__()
        self._overlap = overlap

    def add(self, message: sessions_pb2.StepRequest, length: int) -> None:
        """Take in a request without position, of ``length`` steps."""
        self._held.append(Chunk(message, length))

    def release(self, position: int | None) -> Iterator[sessions_pb2.StepRequest]:
        """Yield the requests to send now; the oldest unanswered one finds the session at ``position``."""
        while self._held and len(self._sent) < self._overlap:
            chunk = self._held[0]
            if chunk.position is None:
                chunk.position = self._position_after_sent(position)
                if chunk.position is not None:
                    chunk.message.position = chunk.position
                elif self._sent:
                    return  # the reply in flight will tell
            self._sent.append(self._held.popleft())
            yield chunk.message

    @property
    def can_repeat(self) -> bool:
        """Whether the oldest chunk may be sent once more: not if nobody knows at which position it was."""
        return not self._sent or self._sent[0].position is not None

    def lose(self) -> None:
        for chunk in self._sent:
            chunk.is_repeat = True
        super().lose()

    def is_reply_lost(self, chunk: Chunk, error: TidegateError) -> bool:
        """Whether the error of a chunk, popped a moment ago, says that only its reply is lost."""
        if not isinstance(error, PositionConflictError) or not chunk.is_repeat:
            return False
        if error.reason == "REPLY_DROPPED":  # it was the last, and too large to be kept for long
            return error.position == chunk.end
        return any(later.is_repeat and later.end == error.position for later in self._sent)

    def _position_after_sent(self, position: int | None) -> int | None:
        # A chunk that finds the session elsewhere will not apply, so it moves nothing.
        for chunk in self._sent:
            if chunk.position == position:
                position = chunk.end
        return position


def default_overlap(session: SessionInfo) -> int:
    """Return how many chunks may be with the server: one of a durable session, so that no reply is lost."""
    return 1 if session.durable else MAX_IN_FLIGHT


class LaneWindow(Window[Columns]):
    """The columnar messages of one stream, with its lanes: their sessions, and the positions of these."""

    def __init__(self) -> None:
        super().__init__()
        self._sessions: dict[int, str] = {}
        self._positions: dict[int, int] = {}

    def attach(self, ids: Iterable[str], result: AttachResult) -> None:
        """Record that sessions were given lanes."""
        self._sessions.update(enumerate(ids, result.first_lane))
        self._positions.update(enumerate(result.positions, result.first_lane))

    def attach_again(self) -> Iterator[predictor_pb2.StreamRequest]:
        """Yield the requests that give a new stream the lanes of the old."""
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
        self._held.append(Columns(request, frozenset(request.columns.lanes)))

    def release(self) -> Iterator[predictor_pb2.StreamRequest]:
        """Yield the requests to send now, with positions."""
        while self._held and self._can_send(self._held[0]):
            message = self._held.popleft()
            columns = message.request.columns
            if not columns.positions:
                get = self._positions.get
                # A lane that nothing is known of is refused for itself, whatever its position.
                columns.positions.extend([get(lane, 0) for lane in columns.lanes])
            self._sent.append(message)
            yield message.request

    def move(self, result: ColumnsResult) -> None:
        """Record the positions that a reply brought."""
        self._positions.update(zip(result.lanes, result.positions, strict=True))

    def _can_send(self, message: Columns) -> bool:
        return len(self._sent) < MAX_IN_FLIGHT and all(message.lanes.isdisjoint(sent.lanes) for sent in self._sent)
