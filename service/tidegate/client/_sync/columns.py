# Generated from ../_async/columns.py by tools/sync_client.py: edit that file, then `make sync-client`.
"""Steps of many sessions over a stream that goes on by itself after a loss.

`send_window` decides what is sent when, at which positions, and what again after a loss; here it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from numpy.typing import ArrayLike

from tidegate.api import StepOptions
from tidegate.client._sync.connection import Connection, OpenStream
from tidegate.client._sync.session import Session
from tidegate.client.requests import InputValues, Integers, attach_request, columns_request, session_ids
from tidegate.client.retry import TRANSIENT_ERRORS, Tries, transient_error
from tidegate.client.send_window import LaneWindow
from tidegate.v1 import predictor_pb2
from tidegate.wire.columns import AttachResult, ColumnsResult, decode_attached, decode_columns_reply
from tidegate.wire.errors import decode_error


class ColumnStream:
    """Steps of many sessions in one message. It does not move the positions of `Session` objects: `refresh` those.

    Each lane's position is known from its attachment and its replies and sent along. When the stream breaks or its
    server drains, another is opened, the lanes are attached there and what is not answered is sent again: each step is
    applied once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._window = LaneWindow()
        self._stream: OpenStream | None = None
        self._is_closed = False

    def attach(self, sessions: str | Session | Iterable[str | Session], first_lane: int = 0) -> AttachResult:
        """Give sessions the lanes ``first_lane``, ``first_lane + 1``…; a lane that was taken is given anew."""
        self._window.require_none_in_flight()
        ids = session_ids(sessions)
        request = attach_request(first_lane, ids)
        reply = self._receive_reply(request)
        if reply.HasField("error"):
            raise decode_error(reply.error)
        result = decode_attached(reply.attached)
        self._window.attach(ids, result)
        return result

    def step(
        self,
        lanes: Integers,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        inputs: InputValues | None = None,
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
            inputs: Values of the model's settings by name, for all lanes; each session's own where none is given.
            lengths: [lane], steps of each; None: one each.
            positions: [lane], each session's position before; None: those that the stream has been told.
            top: Candidates a step.
            every_step: Tell every step, not only the last.
        """
        self._window.require_none_in_flight()
        self.send(
            lanes,
            tokens=tokens,
            values=values,
            inputs=inputs,
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
        inputs: InputValues | None = None,
        lengths: Integers | None = None,
        positions: Integers | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> None:
        """Send columns without waiting. While a lane awaits an answer, further columns of it are held back here."""
        options = StepOptions(top, every_step)
        self._window.add(
            columns_request(
                lanes,
                tokens=tokens,
                values=values,
                lengths=lengths,
                positions=positions,
                options=options,
                inputs=inputs,
            )
        )
        try:
            if self._stream is not None:
                self._push(self._stream)
        except BaseException:
            self._drop()
            self._window.withdraw()
            raise

    def receive(self) -> ColumnsResult:
        """The answer to the oldest columns that have none, or their error; the stream is usable afterwards."""
        self._window.require_in_flight()
        try:
            reply = self._receive_reply()
        finally:
            self._window.pop()
        if reply.HasField("error"):
            raise decode_error(reply.error)
        result = decode_columns_reply(reply.columns)
        self._window.move(result)
        return result

    def close(self) -> None:
        """End the stream; what is in flight is cancelled."""
        self._is_closed = True
        self._drop()

    def __repr__(self) -> str:
        return f"<ColumnStream to {self._connection.plan.endpoint}, {len(self._window)} in flight>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive_reply(self, attach: predictor_pb2.StreamRequest | None = None) -> predictor_pb2.StreamReply:
        """Return the reply to the oldest columns, or to ``attach``, over as many streams as it takes.

        Lanes that stay away are errors in it.
        """
        tries: Tries | None = None
        while True:
            reply = None
            try:
                stream = self._open_stream()
                if attach is None:
                    self._push(stream)
                else:
                    stream.send(attach)
                reply = stream.receive()
                transient = transient_error(reply)
                if transient is None:
                    return reply
                raise transient
            except TRANSIENT_ERRORS as error:
                self._drop()
                tries = tries or self._connection.retry.begin()
                if not self._connection.wait(tries, error):
                    if reply is None:
                        raise
                    return reply
            except BaseException:
                # Whoever interrupted us left a reply behind, which the next call must not take for its own.
                self._drop()
                raise

    def _open_stream(self) -> OpenStream:
        """Return the stream; a new one is given the lanes of the old."""
        if self._is_closed:
            raise RuntimeError("the stream is closed")
        if self._stream is None:
            self._stream = self._connection.stream()
            for request in self._window.attach_again():
                self._stream.send(request)
                reply = self._stream.receive()
                if reply.HasField("error"):
                    raise decode_error(reply.error)
        return self._stream

    def _push(self, stream: OpenStream) -> None:
        """Send what may go out."""
        for request in self._window.release():
            stream.send(request)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._window.lose()
