# Generated from ../_async/client.py by tools/sync_client.py: edit that file, then `make sync-client`.
"""A server as an object: its models, whole sequences, generation and sessions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
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
from tidegate.client._sync.columns import ColumnStream
from tidegate.client._sync.connection import Connection
from tidegate.client._sync.session import Session
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


class Client:
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
        sleep: Callable[[float], Any] = time.sleep,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        self._connection = Connection(ChannelPlan(address, **options), timeout, retry, sleep)

    def models(self) -> list[ModelInfo]:
        """Every loaded version of every model."""
        models, token = [], ""
        while True:
            request = models_pb2.ListModelsRequest(page_token=token)
            page = decode_model_page(self._connection.call(self._connection.models.List, request))
            models += page.models
            if not (token := page.next_page_token):
                return models

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        """One model; without version its highest."""
        request = build(models_pb2.GetModelRequest, model=name, version=version or "")
        return decode_model(self._connection.call(self._connection.models.Get, request))

    def reload(self) -> ReloadReport:
        """Let the server read its bundle directory again."""
        return decode_reload(self._connection.call(self._connection.models.Reload, models_pb2.ReloadRequest()))

    def predict(
        self,
        model: str,
        sequences: Input | Iterable[Given],
        *,
        version: str | None = None,
        inputs: InputValues | None = None,
        top: int = 1,
        every_step: bool = False,
        timeout: float | None = None,
    ) -> PredictResult:
        """Run whole sequences, each from the initial state: texts, token lists, or arrays of values [step, feature].

        One sequence by itself is taken as a list of one: a text is no list of letters. ``inputs`` are values of the
        model's settings by name, for all sequences that are not an `Input` with its own.

        Raises:
            InvalidInputError: A sequence is wrong; ``details["sequence"]`` is its index. None was run.
        """
        request = predict_request(model, version, sequences, StepOptions(top, every_step), inputs)
        reply = self._connection.call(self._connection.predictor.Predict, request, timeout=timeout)
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
    ) -> Iterator[GeneratedToken | GenerationDone]:
        """Sample after the prompt, token by token; the last event is the end. Closing the iterator stops the server."""
        request = generate_request(model, version, prompt, sampling_of(sampling), inputs)
        return self._connection.events(self._connection.predictor.Generate, request, timeout=timeout)

    def open(self, model: str, **options: Unpack[SessionOptions]) -> Session:
        """Open a session; used as a context manager it closes at the end of the block."""
        request = open_request(model, options)
        reply = self._connection.call(self._connection.sessions.Open, request, request.id)
        return Session(self._connection, decode_session(reply))

    def restore(self, snapshot: bytes, **options: Unpack[RestoreOptions]) -> Session:
        """Open a session from the bytes of `Session.snapshot`.

        Raises:
            InvalidInputError: They are no snapshot, or altered.
            FailedPreconditionError: The model it names is not here.
        """
        request = restore_request(snapshot, options)
        reply = self._connection.call(self._connection.sessions.Restore, request, request.id)
        return Session(self._connection, decode_session(reply))

    def session(self, id: str) -> Session:  # noqa: A002 - its name everywhere else
        """Find a session that is open, where it is now: a durable one also after its server was started again."""
        request = build(sessions_pb2.GetSessionRequest, session=id)
        reply = self._connection.call(self._connection.sessions.Get, request, id)
        return Session(self._connection, decode_session(reply))

    def sessions(self) -> Iterator[SessionInfo]:
        """Every open session, page by page."""
        token = ""
        while True:
            request = sessions_pb2.ListSessionsRequest(page_token=token)
            page = decode_session_page(self._connection.call(self._connection.sessions.List, request))
            for session in page.sessions:
                yield session
            if not (token := page.next_page_token):
                return

    def stream(self) -> ColumnStream:
        """A stream that steps many sessions in one message."""
        return ColumnStream(self._connection)

    def __repr__(self) -> str:
        return f"Client({self._connection.plan.endpoint.address!r})"

    def close(self) -> None:
        """Close the connection. Sessions stay open on the server."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
