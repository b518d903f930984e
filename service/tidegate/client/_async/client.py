"""A server as an object: its models, whole sequences, generation and sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self, Unpack

from tidegate.api import (
    GeneratedToken,
    GenerationDone,
    Input,
    ModelInfo,
    PredictResult,
    ReloadReport,
    SessionInfo,
    StepOptions,
)
from tidegate.client._async.columns import AsyncColumnStream
from tidegate.client._async.connection import AsyncConnection
from tidegate.client._async.session import AsyncSession, opening
from tidegate.client.arguments import build
from tidegate.client.channel import ChannelPlan, ConnectionOptions
from tidegate.client.requests import (
    Given,
    InputValues,
    RestoreOptions,
    SamplingOptions,
    SessionOptions,
    generate_request,
    open_request,
    predict_request,
    restore_request,
    sampling_of,
)
from tidegate.client.retry import Retry
from tidegate.v1 import models_pb2, sessions_pb2
from tidegate.wire.models import decode_model, decode_model_page, decode_reload
from tidegate.wire.predictions import decode_predict
from tidegate.wire.sessions import decode_session, decode_session_page


class AsyncClient:
    """A server, by its address. Many tasks or threads may share a client; each session belongs to one at a time.

    The client for asyncio belongs to the event loop that it is made in. Every method raises `tidegate.errors` only.

    Args:
        address: HOST:PORT, https://HOST:PORT or unix:PATH.
        timeout: Seconds that a call may take, unless it says otherwise.
        retry: How long and how often requests are tried again while the server is away. Only those are tried again that
            apply once however often they are sent: steps and generations at a known position, and questions.
        sleep: What waits between tries.
        options: TLS, tokens, metadata, proxies: see `tidegate.client.channel.ConnectionOptions`.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8081",
        *,
        timeout: float = 60,
        retry: Retry = Retry(),  # noqa: B008 - it is frozen
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        self._connection = AsyncConnection(ChannelPlan(address, **options), timeout, retry, sleep)

    async def models(self) -> list[ModelInfo]:
        """Every loaded version of every model."""
        models, token = [], ""
        while True:
            request = models_pb2.ListModelsRequest(page_token=token)
            page = decode_model_page(await self._connection.call(self._connection.models.List, request))
            models += page.models
            if not (token := page.next_page_token):
                return models

    async def model(self, name: str, version: str | None = None) -> ModelInfo:
        """One model; without version its highest."""
        request = build(models_pb2.GetModelRequest, model=name, version=version or "")
        return decode_model(await self._connection.call(self._connection.models.Get, request))

    async def reload(self) -> ReloadReport:
        """Let the server read its bundle directory again."""
        return decode_reload(await self._connection.call(self._connection.models.Reload, models_pb2.ReloadRequest()))

    async def predict(
        self,
        model: str,
        sequences: Input | Iterable[Given],
        *,
        version: str | None = None,
        inputs: InputValues | None = None,
        top: int = 1,
        every_step: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the server as the call's deadline
    ) -> PredictResult:
        """Run whole sequences, each from the initial state: texts, token lists, or arrays of values [step, feature].

        One sequence by itself is taken as a list of one: a text is no list of letters. ``inputs`` are values of the
        model's settings by name, for all sequences that are not an `Input` with its own.

        Raises:
            InvalidInputError: A sequence is wrong; ``details["sequence"]`` is its index. None was run.
        """
        request = predict_request(model, version, sequences, StepOptions(top, every_step), inputs)
        reply = await self._connection.call(self._connection.predictor.Predict, request, timeout=timeout)
        return decode_predict(reply, every_step=every_step)

    def generate(
        self,
        model: str,
        prompt: Given | None = None,
        *,
        version: str | None = None,
        inputs: InputValues | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncIterator[GeneratedToken | GenerationDone]:
        """Sample after the prompt, token by token; the last event is the end. Closing the iterator stops the server."""
        request = generate_request(model, version, prompt, sampling_of(sampling), inputs)
        return self._connection.events(self._connection.predictor.Generate, request, timeout=timeout)

    @opening  # async only
    async def open(self, model: str, **options: Unpack[SessionOptions]) -> AsyncSession:
        """Open a session; used as a context manager it closes at the end of the block."""
        request = open_request(model, options)
        reply = await self._connection.call(self._connection.sessions.Open, request, request.id)
        return AsyncSession(self._connection, decode_session(reply))

    @opening  # async only
    async def restore(self, snapshot: bytes, **options: Unpack[RestoreOptions]) -> AsyncSession:
        """Open a session from the bytes of `Session.snapshot`.

        Raises:
            InvalidInputError: They are no snapshot, or altered.
            FailedPreconditionError: The model it names is not here.
        """
        request = restore_request(snapshot, options)
        reply = await self._connection.call(self._connection.sessions.Restore, request, request.id)
        return AsyncSession(self._connection, decode_session(reply))

    async def session(self, id: str) -> AsyncSession:  # noqa: A002 - its name everywhere else
        """Find a session that is open, where it is now: a durable one also after its server was started again."""
        request = build(sessions_pb2.GetSessionRequest, session=id)
        reply = await self._connection.call(self._connection.sessions.Get, request, id)
        return AsyncSession(self._connection, decode_session(reply))

    async def sessions(self) -> AsyncIterator[SessionInfo]:
        """Every open session, page by page."""
        token = ""
        while True:
            request = sessions_pb2.ListSessionsRequest(page_token=token)
            page = decode_session_page(await self._connection.call(self._connection.sessions.List, request))
            for session in page.sessions:
                yield session
            if not (token := page.next_page_token):
                return

    def stream(self) -> AsyncColumnStream:
        """A stream that steps many sessions in one message."""
        return AsyncColumnStream(self._connection)

    def __repr__(self) -> str:
        return f"AsyncClient({self._connection.plan.endpoint.address!r})"

    async def close(self) -> None:
        """Close the connection. Sessions stay open on the server."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
