"""A running sequence as an object, and the stream of its steps, which goes on by itself after a loss.

`send_window` decides what is sent when, at which positions, and what again after a loss; here it is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import aclosing, nullcontext, suppress
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, Self, Unpack

from numpy.typing import ArrayLike

from tidegate.api import CheckpointInfo, GeneratedToken, GenerationDone, SessionInfo, StepOptions, StepResult
from tidegate.client._async.connection import AsyncConnection, AsyncOpenStream
from tidegate.client.arguments import build
from tidegate.client.requests import (
    Given,
    InputValues,
    Integers,
    SamplingOptions,
    fork_request,
    num_steps,
    one_input,
    sampling_of,
    session_generate_request,
    step_request,
)
from tidegate.client.retry import TRANSIENT_ERRORS, Tries, transient_error
from tidegate.client.send_window import ReplyLostError, SendWindow, default_overlap
from tidegate.errors import DeadlineExceededError, TidegateError, UnavailableError
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.errors import decode_error
from tidegate.wire.predictions import decode_step
from tidegate.wire.sessions import decode_checkpoint, decode_forks, decode_session


class AsyncSession:
    """A session on the server. As a context manager it closes the session at the end.

    Steps carry the session's position, so that a repeat, after a connection was lost, is never applied twice. One
    thread at a time may use a session.

    Attributes:
        info: What the server told at opening or at the last `refresh`, `rewind` or `upgrade`.
        position: Steps consumed so far; None, not known, after a generation that was broken off. Until the next reply
            tells it again steps are then sent without position and not repeated.
    """

    def __init__(self, connection: AsyncConnection, info: SessionInfo) -> None:
        self._connection = connection
        self.info = info
        self.position: int | None = info.position

    def __repr__(self) -> str:
        kind = ", durable" if self.info.durable else ""
        return f"<AsyncSession {self.id} of {self.info.model}/{self.info.version} at {self.position}{kind}>"

    @property
    def id(self) -> str:
        return self.info.id

    async def step(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        inputs: InputValues | None = None,
        top: int = 1,
        every_step: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the server as the call's deadline
    ) -> StepResult:
        """Feed one chunk of the sequence, and return what the model says.

        Args:
            text: Its characters, for a model that has such tokens; or
            tokens: [step], or
            values: [step, feature] in data units.
            inputs: Values of the model's settings by name, for this chunk alone; the session's own where none is given.
            top: Candidates a step.
            every_step: Tell every step, not only the last.
            timeout: Seconds of each try; None is the client's.

        Raises:
            PositionConflictError: Somebody else stepped the session; `refresh` tells where it is.
            UnavailableError, DeadlineExceededError: The outcome is unknown. The same step again is safe.
        """
        given = one_input(text, tokens, values, inputs)
        request = step_request(self.id, self.position, given, StepOptions(top, every_step))
        send = self._connection.call if self.position is None else self._connection.call_repeatedly
        reply = await send(self._connection.sessions.Step, request, self.id, timeout)
        self.position = reply.position
        return decode_step(reply, every_step=every_step)

    async def generate(
        self,
        prompt: Given | None = None,
        *,
        inputs: InputValues | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncIterator[GeneratedToken | GenerationDone]:
        """Consume the prompt, if any, then sample; every token told is consumed too. The last event is the end.

        While the server is away the generation is asked for again: the server tells what it has told, which is passed
        over here, and goes on.

        Raises:
            UnavailableError, DeadlineExceededError: The outcome is unknown. The same generation again is safe, and
                begins with what was told.
        """
        position, self.position = self.position, None
        request = session_generate_request(self.id, position, prompt, sampling_of(sampling), inputs)
        ask = self._connection.events if position is None else self._connection.events_repeatedly
        try:
            async with aclosing(ask(self._connection.sessions.Generate, request, self.id, timeout)) as events:
                async for event in events:
                    if isinstance(event, GenerationDone):
                        self.position = event.position
                    yield event
        except (UnavailableError, DeadlineExceededError):
            self.position = position
            raise

    def stream(self, overlap: int | None = None) -> AsyncSessionStream:
        """Step over one bidirectional stream, which costs less a step than a call and lets steps overlap.

        Args:
            overlap: Chunks that may be with the server at a time; others are held back here until replies come in. The
                server remembers one reply, so with more than 1 a connection that breaks may take replies with it:
                `ReplyLostError`. None: 1 for a durable session, else as many as a server takes in.
        """
        return AsyncSessionStream(self._connection, self, overlap or default_overlap(self.info))

    async def refresh(self) -> SessionInfo:
        """Ask the server how the session stands."""
        request = sessions_pb2.GetSessionRequest(session=self.id)
        return self._take(await self._connection.call_repeatedly(self._connection.sessions.Get, request, self.id))

    async def fork(self, ids: str | Sequence[str] | None = None, count: int | None = None) -> list[AsyncSession]:
        """Open sessions that go on from where this one is: under these ids, or so many; neither: one.

        With ids a repeat finds what it has opened; so only then is it tried again while the server is away.
        """
        request = fork_request(self.id, ids, count)
        send = self._connection.call_repeatedly if ids else self._connection.call
        forks = decode_forks(await send(self._connection.sessions.Fork, request, self.id))
        return [AsyncSession(self._connection, info) for info in forks]

    async def checkpoint(self, name: str | None = None) -> CheckpointInfo:
        """Retain where the session is, under a name or one that the server makes; of more than 8 the oldest goes."""
        request = build(sessions_pb2.CheckpointRequest, session=self.id, name=name or "")
        return decode_checkpoint(await self._connection.call(self._connection.sessions.Checkpoint, request, self.id))

    async def rewind(self, checkpoint: str | CheckpointInfo) -> SessionInfo:
        """Take the session back to a checkpoint, which stays."""
        name = checkpoint.checkpoint if isinstance(checkpoint, CheckpointInfo) else checkpoint
        request = build(sessions_pb2.RewindRequest, session=self.id, checkpoint=name)
        return self._take(await self._connection.call(self._connection.sessions.Rewind, request, self.id))

    async def upgrade(self, version: str | None = None) -> SessionInfo:
        """Move the session to another version of its model, without one to the highest; their states must fit."""
        request = build(sessions_pb2.UpgradeRequest, session=self.id, version=version or "")
        return self._take(await self._connection.call(self._connection.sessions.Upgrade, request, self.id))

    async def snapshot(self) -> bytes:
        """The session as portable bytes, for `Client.restore` here or elsewhere."""
        request = sessions_pb2.SnapshotRequest(session=self.id)
        reply = await self._connection.call_repeatedly(self._connection.sessions.Snapshot, request, self.id)
        return reply.snapshot

    async def close(self) -> None:
        """End the session; closing twice succeeds."""
        request = sessions_pb2.CloseRequest(session=self.id)
        await self._connection.call_repeatedly(self._connection.sessions.Close, request, self.id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error of the block is not hidden by one of closing.
        with suppress(TidegateError) if kind else nullcontext():
            await self.close()

    def _take(self, reply: sessions_pb2.Session) -> SessionInfo:
        self.info = decode_session(reply)
        self.position = self.info.position
        return self.info


class AsyncSessionStream:
    """Steps of one session over one stream. `step` waits for its reply; `send` and `receive` let many overlap.

    When the stream breaks or its server drains, another is opened and what is not answered is sent again with its
    position: each step is applied once. See `Session.stream` for ``overlap``.
    """

    def __init__(self, connection: AsyncConnection, session: AsyncSession, overlap: int) -> None:
        self._connection = connection
        self._session = session
        self._window = SendWindow(overlap)
        self._stream: AsyncOpenStream | None = None
        self._is_closed = False

    async def step(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        inputs: InputValues | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> StepResult:
        """As `Session.step`."""
        self._window.require_none_in_flight()
        await self.send(text, tokens=tokens, values=values, inputs=inputs, top=top, every_step=every_step)
        return await self.receive()

    async def send(
        self,
        text: str | None = None,
        *,
        tokens: Integers | None = None,
        values: ArrayLike | None = None,
        inputs: InputValues | None = None,
        top: int = 1,
        every_step: bool = False,
    ) -> None:
        """Send a step without waiting. It goes out now, or, over ``overlap``, when `receive` has made room for it."""
        given = one_input(text, tokens, values, inputs)
        self._window.add(step_request(self._session.id, None, given, StepOptions(top, every_step)), num_steps(given))
        try:
            await self._push()
        except BaseException:
            self._drop()
            self._window.withdraw()
            raise

    async def receive(self) -> StepResult:
        """The reply to the oldest step that has none, or its error; the stream is usable afterwards.

        After an error the steps sent behind it, which cannot apply where they were meant to, are conflicts.

        Raises:
            ReplyLostError: The step was applied, its reply went down with a connection.
            PositionConflictError, UnavailableError, DeadlineExceededError: As `Session.step`.
        """
        self._window.require_in_flight()
        try:
            reply = await self._next_reply()
        except BaseException:
            # Given up. Whoever interrupted us left a reply behind, which the next call must not take for its own.
            self._drop()
            self._window.pop()
            raise
        chunk = self._window.pop()
        if reply.HasField("error"):
            error = decode_error(reply.error)
            if not self._window.is_reply_lost(chunk, error):
                raise error
            assert chunk.end is not None
            self._session.position = chunk.end
            raise ReplyLostError(chunk.end) from error
        self._session.position = reply.step.position
        return decode_step(reply.step, every_step=chunk.message.every_step)

    def close(self) -> None:
        """End the stream; what is in flight is cancelled."""
        self._is_closed = True
        self._drop()

    def __repr__(self) -> str:
        return f"<AsyncSessionStream of {self._session.id} at {self._session.position}, {len(self._window)} in flight>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _next_reply(self) -> predictor_pb2.StreamReply:
        """The reply to the oldest chunk, over as many streams as it takes."""
        tries: Tries | None = None
        while True:
            try:
                stream = await self._push()
                reply = await stream.receive()
                transient = transient_error(reply)
                if transient is None:
                    return reply
                raise transient
            except TRANSIENT_ERRORS as error:
                can_repeat = self._window.can_repeat
                self._drop()
                tries = tries or self._connection.retry.begin()
                if not (can_repeat and await self._connection.wait(tries, error)):
                    raise

    async def _push(self) -> AsyncOpenStream:
        """Send what may go out."""
        if self._is_closed:
            raise RuntimeError("the stream is closed")
        if self._stream is None:
            self._stream = self._connection.stream(self._session.id)
        for message in self._window.release(self._session.position):
            await self._stream.send(predictor_pb2.StreamRequest(step=message))
        return self._stream

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._window.lose()


class Opening:  # async only
    """An opening under way: ``await`` it for the session, or ``async with`` it to have the session closed as well."""

    def __init__(self, opening: Coroutine[Any, Any, AsyncSession]) -> None:
        self._opening = opening

    def __await__(self) -> Generator[Any, Any, AsyncSession]:
        return self._opening.__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._opening
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.__aexit__(kind, error, trace)


P = ParamSpec("P")  # async only


def opening(method: Callable[P, Coroutine[Any, Any, AsyncSession]]) -> Callable[P, Opening]:  # async only
    """Make a coroutine function one whose calls can be awaited, or entered as a context manager."""

    @wraps(method)
    def start(*args: P.args, **kwargs: P.kwargs) -> Opening:
        return Opening(method(*args, **kwargs))

    return start
