"""`session` for asyncio: a running sequence as an object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator, Sequence
from contextlib import aclosing, nullcontext, suppress
from types import TracebackType
from typing import Any, Self, Unpack

from numpy.typing import ArrayLike

from tidegate.api import Ask, CheckpointInfo, GeneratedToken, GenerationDone, SessionInfo, StepResult
from tidegate.client.aio_connection import AsyncConnection
from tidegate.client.aio_stream import AsyncSessionStream
from tidegate.client.arguments import build
from tidegate.client.asking import (
    Given,
    Integers,
    fork_request,
    one_input,
    sampling_of,
    session_generate_request,
    step_request,
)
from tidegate.client.flight import default_overlap
from tidegate.client.options import SamplingOptions
from tidegate.errors import DeadlineExceededError, TidegateError, UnavailableError
from tidegate.v1 import sessions_pb2
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
        top: int = 1,
        every_step: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the server as the call's deadline
    ) -> StepResult:
        """Feed one chunk of the sequence, and return what the model says.

        Args:
            text: Its characters, for a model that has such tokens; or
            tokens: [step], or
            values: [step, feature] in data units.
            top: Candidates a step.
            every_step: Tell every step, not only the last.
            timeout: Seconds of each try; None is the client's.

        Raises:
            PositionConflictError: Somebody else stepped the session; `refresh` tells where it is.
            UnavailableError, DeadlineExceededError: The outcome is unknown. The same step again is safe.
        """
        request = step_request(self.id, self.position, one_input(text, tokens, values), Ask(top, every_step))
        send = self._connection.call if self.position is None else self._connection.call_repeatedly
        reply = await send(self._connection.sessions.Step, request, self.id, timeout)
        self.position = reply.position
        return decode_step(reply, every_step=every_step)

    async def generate(
        self,
        prompt: Given | None = None,
        *,
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
        request = session_generate_request(self.id, position, prompt, sampling_of(sampling))
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


class Opening:
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
