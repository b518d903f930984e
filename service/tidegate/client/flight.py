"""The chunks of a session's stream that are not answered: what may go out, at which position, and what after a loss.

Knows positions, no I/O; both kinds of `SessionStream` stand on it.

Theory of operation. Every chunk carries the position that the session will have before it: the last one told, plus
the steps in flight. A character of a text is one step, as are a token and a row of values. After a loss everything
that is not answered goes out again, oldest first, at the same positions: what the server had applied is answered from
its memory, the rest applies now. The server remembers the last chunk only. So with ``overlap`` 1 every reply can be
had; with more, a chunk that was applied together with one behind it cannot be answered any more. It has not been
applied twice, nor skipped: its repeat is a conflict at the end of a later repeat, and `ReplyLostError` says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from tidegate.api import SessionInfo
from tidegate.errors import PositionConflictError, TidegateError
from tidegate.v1 import sessions_pb2

MAX_IN_FLIGHT = 32
"""A server reads no further while so many messages of a stream wait."""


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
    """A request without an answer. ``position`` is None while it is not known; so is ``end``, the position after."""

    message: sessions_pb2.StepRequest
    length: int
    position: int | None = None
    is_repeat: bool = False

    @property
    def end(self) -> int | None:
        return None if self.position is None else self.position + self.length


def default_overlap(session: SessionInfo) -> int:
    """How many chunks of a session may be with the server where nobody says: one, where none may be lost."""
    return 1 if session.durable else MAX_IN_FLIGHT


class Flight:
    """Chunks in the order of their sending: at most ``overlap`` are with the server, the others are held back."""

    def __init__(self, overlap: int) -> None:
        if overlap < 1:
            raise ValueError(f"overlap must be at least 1, got {overlap}")
        self._overlap = overlap
        self._sent: deque[Chunk] = deque()
        self._held: deque[Chunk] = deque()

    def __len__(self) -> int:
        return len(self._sent) + len(self._held)

    def add(self, message: sessions_pb2.StepRequest, length: int) -> None:
        """Take in a request without position, of ``length`` steps."""
        self._held.append(Chunk(message, length))

    def release(self, position: int | None) -> Iterator[sessions_pb2.StepRequest]:
        """The requests to send now, where the oldest unanswered one finds the session at ``position``."""
        while self._held and len(self._sent) < self._overlap:
            chunk = self._held[0]
            if chunk.position is None:
                chunk.position = self._reached(position)
                if chunk.position is not None:
                    chunk.message.position = chunk.position
                elif self._sent:
                    return  # the reply in flight will tell
            self._sent.append(self._held.popleft())
            yield chunk.message

    @property
    def can_repeat(self) -> bool:
        """Whether the oldest chunk may be sent once more: it may not where nobody knows at which position it was."""
        return not self._sent or self._sent[0].position is not None

    def lose(self) -> None:
        """The connection is lost: what was with the server is to be sent again."""
        for chunk in self._sent:
            chunk.is_repeat = True
        self._held.extendleft(reversed(self._sent))
        self._sent.clear()

    def withdraw(self) -> None:
        """The newest, after a loss, is not to be sent: its sender was interrupted."""
        self._held.pop()

    def pop(self) -> Chunk:
        """The oldest chunk: it is answered, or given up."""
        return self._sent.popleft() if self._sent else self._held.popleft()

    def is_lost(self, chunk: Chunk, error: TidegateError) -> bool:
        """Whether the error of a chunk, taken from here a moment ago, says that only its reply is lost."""
        if not isinstance(error, PositionConflictError) or not chunk.is_repeat:
            return False
        if error.reason == "REPLY_DROPPED":  # it was the last, and too large to be kept for long
            return error.position == chunk.end
        return any(later.is_repeat and later.end == error.position for later in self._sent)

    def _reached(self, position: int | None) -> int | None:
        """Where the session will be after what is with the server. A chunk that finds it elsewhere will not apply."""
        for chunk in self._sent:
            if chunk.position == position:
                position = chunk.end
        return position
