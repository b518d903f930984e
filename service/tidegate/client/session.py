"""A running sequence as an object, and the streams that step sequences fast. For asyncio see `aio_session`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Self, Unpack

from numpy.typing import ArrayLike

from tidegate.client.asking import (
    Given,
    Integers,
    attach_request,
    columns_request,
    one_input,
    require_none_in_flight,
    session_generate_request,
    step_request,
)
from tidegate.client.connection import Connection
from tidegate.client.options import SamplingOptions
from tidegate.core import Ask, GeneratedToken, GenerationDone, Sampling, SessionInfo, StepResult
from tidegate.errors import TidegateError
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.columns import AttachResult, ColumnsResult, decode_attached, decode_columns_reply
from tidegate.wire.predictions import decode_step
from tidegate.wire.sessions import decode_session


class Session:
    """A session on the server. As a context manager it closes the session at the end.

    Steps carry the session's position, so that a repeat, after a connection was lost, is never applied twice. One
    thread at a time may use a session.

    Attributes:
        info: What the server told at opening or at the last `refresh`.
        position: Steps consumed so far; None, not known, after a generation that was broken off. Until the next reply
            tells it again steps are then sent without position and not repeated.
    """

    def __init__(self, connection: Connection, info: SessionInfo) -> None:
        self._connection = connection
        self.info = info
        self.position: int | None = info.position

    @property
    def id(self) -> str:
        return self.info.id

    def step(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        top: int = 1,
        every_step: bool = False,
        timeout: float | None = None,
    ) -> StepResult:
        """Feed one chunk of the sequence, and return what the model says.

        Args:
            text: Its characters, for a model that has such tokens; or
            tokens: [step], or
            values: [step, feature] in data units.
            top: Candidates a step.
            every_step: Tell every step, not only the last.
            timeout: Seconds; None is the client's.

        Raises:
            PositionConflictError: Somebody else stepped the session; `refresh` tells where it is.
            UnavailableError, DeadlineExceededError: The outcome is unknown. The same step again is safe.
        """
        request = step_request(self.id, self.position, one_input(text, tokens, values), Ask(top, every_step))
        send = self._connection.call if self.position is None else self._connection.call_repeatedly
        reply = send(self._connection.sessions.Step, request, self.id, timeout)
        self.position = reply.position
        return decode_step(reply, every_step=every_step)

    def generate(
        self, prompt: Given | None = None, *, timeout: float | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[GeneratedToken | GenerationDone]:
        """Consume the prompt, if any, then sample; every token told is consumed too. The last event is the end."""
        request = session_generate_request(self.id, self.position, prompt, Sampling(**sampling))
        self.position = None
        for event in self._connection.events(self._connection.sessions.Generate, request, self.id, timeout):
            if isinstance(event, GenerationDone):
                self.position = event.position
            yield event

    def stream(self) -> SessionStream:
        """Step over one bidirectional stream, which costs less a step than a call and lets steps overlap."""
        return SessionStream(self._connection, self)

    def refresh(self) -> SessionInfo:
        """Ask the server how the session stands."""
        request = sessions_pb2.GetSessionRequest(session=self.id)
        self.info = decode_session(self._connection.call(self._connection.sessions.Get, request, self.id))
        self.position = self.info.position
        return self.info

    def close(self) -> None:
        """End the session; closing twice succeeds."""
        request = sessions_pb2.CloseRequest(session=self.id)
        self._connection.call(self._connection.sessions.Close, request, self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error of the block is not hidden by one of closing.
        with suppress(TidegateError) if kind else nullcontext():
            self.close()


class SessionStream:
    """Steps of one session over one stream. `step` waits for its reply; `send` and `receive` let many overlap."""

    def __init__(self, connection: Connection, session: Session) -> None:
        self._session = session
        self._stream = connection.stream(session.id)
        # Of each request in flight: whether every step was asked for.
        self._in_flight: deque[bool] = deque()

    def step(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> StepResult:
        """As `Session.step`, but never repeated by itself: after a loss, open a new stream and step again."""
        require_none_in_flight(len(self._in_flight))
        position = self._session.position
        self._send(step_request(self._session.id, position, one_input(text, tokens, values), Ask(top, every_step)))
        return self.receive()

    def send(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> None:
        """Send a step without waiting, and without position: where the session will be is not known yet."""
        self._send(step_request(self._session.id, None, one_input(text, tokens, values), Ask(top, every_step)))

    def receive(self) -> StepResult:
        """The reply to the oldest step that has none. An error of that step leaves the stream usable."""
        every_step = self._in_flight.popleft()
        result = decode_step(self._stream.receive().step, every_step=every_step)
        self._session.position = result.position
        return result

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: sessions_pb2.StepRequest) -> None:
        self._stream.send(predictor_pb2.StreamRequest(step=message))
        self._in_flight.append(message.every_step)


class ColumnStream:
    """Steps of many sessions in one message. It does not move the positions of `Session` objects: `refresh` those."""

    def __init__(self, connection: Connection) -> None:
        self._stream = connection.stream()
        self._num_in_flight = 0

    def attach(self, sessions: Iterable[str | Session], first_lane: int = 0) -> AttachResult:
        """Give sessions the lanes ``first_lane``, ``first_lane + 1``…; a lane that was taken is given anew."""
        require_none_in_flight(self._num_in_flight)
        ids = [session if isinstance(session, str) else session.id for session in sessions]
        self._stream.send(attach_request(first_lane, ids))
        return decode_attached(self._stream.receive().attached)

    def step(
        self,
        lanes: Integers,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        lengths: Integers | None = None,
        positions: Integers | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> ColumnsResult:
        """Step many lanes, each once at most, and wait for all of them. A lane that fails is in the result's errors.

        Args:
            lanes: [lane]; their sessions are of one model and version.
            tokens: [step] of all lanes, one lane after the other, or
            values: [step, feature] likewise.
            lengths: [lane], steps of each; None: one each.
            positions: [lane], each session's position before; None: not given.
            top: Candidates a step.
            every_step: Tell every step, not only the last.
        """
        require_none_in_flight(self._num_in_flight)
        self.send(
            lanes,
            tokens=tokens,
            values=values,
            lengths=lengths,
            positions=positions,
            top=top,
            every_step=every_step,
        )
        return self.receive()

    def send(
        self,
        lanes: Integers,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        lengths: Integers | None = None,
        positions: Integers | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> None:
        """Send columns without waiting."""
        ask = Ask(top, every_step)
        self._stream.send(
            columns_request(lanes, tokens=tokens, values=values, lengths=lengths, positions=positions, ask=ask)
        )
        self._num_in_flight += 1

    def receive(self) -> ColumnsResult:
        """The answer to the oldest columns that have none."""
        self._num_in_flight -= 1
        return decode_columns_reply(self._stream.receive().columns)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
