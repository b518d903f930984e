"""The client for asyncio. Everything is named and means as in `sync`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self, Unpack

from tidegate.api import (
    Ask,
    GeneratedToken,
    GenerationDone,
    Input,
    ModelInfo,
    PredictResult,
    ReloadReport,
    SessionInfo,
)
from tidegate.client.aio_columns import AsyncColumnStream
from tidegate.client.aio_connection import AsyncConnection
from tidegate.client.aio_session import AsyncSession, Opening
from tidegate.client.arguments import build
from tidegate.client.asking import Given, generate_request, open_request, predict_request, restore_request, sampling_of
from tidegate.client.channel import ChannelPlan, ConnectionOptions
from tidegate.client.options import RestoreOptions, SamplingOptions, SessionOptions
from tidegate.client.retry import Retry
from tidegate.v1 import models_pb2, sessions_pb2
from tidegate.wire.models import decode_model, decode_model_page, decode_reload
from tidegate.wire.predictions import decode_predict
from tidegate.wire.sessions import decode_session, decode_session_page


class AsyncClient:
    """`tidegate.client.Client` for asyncio, to be made in the running event loop. Many tasks may share it."""

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
        top: int = 1,
        every_step: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the server as the call's deadline
    ) -> PredictResult:
        """Run whole sequences, each from the initial state: see `Client.predict`."""
        request = predict_request(model, version, sequences, Ask(top, every_step))
        reply = await self._connection.call(self._connection.predictor.Predict, request, timeout=timeout)
        return decode_predict(reply, every_step=every_step)

    def generate(
        self,
        model: str,
        prompt: Given | None = None,
        *,
        version: str | None = None,
        timeout: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncIterator[GeneratedToken | GenerationDone]:
        """Sample after the prompt, token by token; the last event is the end."""
        request = generate_request(model, version, prompt, sampling_of(sampling))
        return self._connection.events(self._connection.predictor.Generate, request, timeout=timeout)

    def open(self, model: str, **options: Unpack[SessionOptions]) -> Opening:
        """Open a session: ``async with client.open(…) as session``, or ``session = await client.open(…)``."""
        return Opening(self._open(open_request(model, options)))

    def restore(self, snapshot: bytes, **options: Unpack[RestoreOptions]) -> Opening:
        """Open a session from the bytes of a snapshot, as `open` does: see `Client.restore`."""
        return Opening(self._restore(restore_request(snapshot, options)))

    async def session(self, id: str) -> AsyncSession:  # noqa: A002 - its name everywhere else
        """Find a session that is open."""
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

    async def _open(self, request: sessions_pb2.OpenRequest) -> AsyncSession:
        reply = await self._connection.call(self._connection.sessions.Open, request, request.id)
        return AsyncSession(self._connection, decode_session(reply))

    async def _restore(self, request: sessions_pb2.RestoreRequest) -> AsyncSession:
        reply = await self._connection.call(self._connection.sessions.Restore, request, request.id)
        return AsyncSession(self._connection, decode_session(reply))
