"""One sender for each interface: how a request of some steps is made, sent and understood there.

gRPC goes through `tidegate.client`, without its repeats, which would hide errors and lengthen latencies. HTTP is spoken
over bare connections, because a general client costs more a request than the server does. Sessions send their position,
as a client does that wants each step applied once; after an error it is not known and left out until the next reply.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import WebSocketException

from tidegate.api import GeneratedToken, Input
from tidegate.client import AsyncClient, AsyncColumnStream, AsyncSession, AsyncSessionStream
from tidegate.errors import TidegateError, UnavailableError
from tidegate.loadgen.drive import LoadReply, SendClock, Sender
from tidegate.loadgen.http1 import HttpConnection, HttpServer, unreachable
from tidegate.loadgen.inputs import InputSource
from tidegate.loadgen.load import Interface, Load

OK = 200


@dataclass(frozen=True, slots=True)
class SenderContext:
    """What all senders of a load share."""

    load: Load
    client: AsyncClient
    http: HttpServer
    source: InputSource
    clock: SendClock


def make_sender(site: SenderContext, sessions: Sequence[AsyncSession]) -> Sender:
    """A sender of the load's interface that steps these sessions: none, one, or as many as a message carries."""
    return SENDERS[site.load.interface](site, sessions)


class StreamSender:
    """Steps one session over its own bidirectional stream; all streams share a connection."""

    def __init__(self, site: SenderContext, sessions: Sequence[AsyncSession]) -> None:
        self._site = site
        (self._session,) = sessions
        self._stream: AsyncSessionStream | None = None

    async def request(self, length: int) -> LoadReply:
        if self._stream is None:
            self._stream = self._session.stream()
        given = self._site.source.draw(length)
        await self._stream.step(tokens=given.tokens, values=given.values, top=self._site.load.top)
        return LoadReply(length)

    async def reset(self) -> None:
        self._session.position = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class UnarySender:
    """Steps one session by gRPC calls."""

    def __init__(self, site: SenderContext, sessions: Sequence[AsyncSession]) -> None:
        self._site = site
        (self._session,) = sessions

    async def request(self, length: int) -> LoadReply:
        given = self._site.source.draw(length)
        await self._session.step(tokens=given.tokens, values=given.values, top=self._site.load.top)
        return LoadReply(length)

    async def reset(self) -> None:
        self._session.position = None


class ColumnarSender:
    """Steps many sessions in each message of one stream. Positions are not sent. Where all fail, the message failed."""

    def __init__(self, site: SenderContext, sessions: Sequence[AsyncSession]) -> None:
        self._site = site
        self._sessions = sessions
        self._lanes = range(len(sessions))
        self._stream: AsyncColumnStream | None = None

    async def request(self, length: int) -> LoadReply:
        if self._stream is None:
            stream = self._site.client.stream()
            await stream.attach(self._sessions)
            self._stream = stream
        given = [self._site.source.draw(length) for _ in self._lanes]
        result = await self._stream.step(
            self._lanes,
            lengths=[length] * len(given),
            tokens=[token for each in given for token in each.tokens or ()],
            values=_stacked(given),
            top=self._site.load.top,
        )
        errors = list(result.errors.values())
        if len(errors) == len(given):
            raise errors[0]
        return LoadReply(length * len(result.lanes), tuple(error.reason for error in errors))

    async def reset(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _stacked(inputs: Sequence[Input]) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]] | None:
    values = [each.values for each in inputs if each.values is not None]
    return np.concatenate(values) if values else None


class HttpSender:
    """Steps one session by ``:step`` over a connection of its own."""

    def __init__(self, site: SenderContext, sessions: Sequence[AsyncSession]) -> None:
        self._site = site
        (self._session,) = sessions
        self._connection = HttpConnection(site.http)
        self._path = f"/v1/sessions/{self._session.id}:step"
        self._headers = f"tidegate-session: {self._session.id}\r\ntidegate-timeout: {site.load.timeout:g}\r\n".encode()

    async def request(self, length: int) -> LoadReply:
        body = _step_json(self._site, self._session, length)
        answer = await self._connection.request("POST", self._path, body.encode(), self._headers)
        document = json.loads(answer.body)
        if answer.status != OK:
            raise problem(document)
        self._session.position = document["position"]
        return LoadReply(length)

    async def reset(self) -> None:
        self._session.position = None
        self._connection.close()


class WebSocketSender:
    """Steps one session by frames of a WebSocket."""

    def __init__(self, site: SenderContext, sessions: Sequence[AsyncSession]) -> None:
        self._site = site
        (self._session,) = sessions
        self._socket: ClientConnection | None = None

    async def request(self, length: int) -> LoadReply:
        body = _step_json(self._site, self._session, length)
        try:
            if self._socket is None:
                self._socket = await self._connect()
            await self._socket.send(body)
            document = json.loads(await self._socket.recv())
        except OSError as error:
            raise unreachable(self._site.http.endpoint, error) from None
        except WebSocketException as error:
            raise UnavailableError(f"the WebSocket ended: {error}") from None
        if "status" in document:
            raise problem(document)
        self._session.position = document["position"]
        return LoadReply(length)

    async def reset(self) -> None:
        self._session.position = None
        if self._socket is not None:
            self._socket.transport.abort()
            self._socket = None

    async def _connect(self) -> ClientConnection:
        server = self._site.http
        url = f"{server.endpoint.url('ws')}/v1/sessions/{self._session.id}/stream"
        timeout = f"{self._site.load.timeout:g}"
        fields = [*server.fields, ("tidegate-session", self._session.id), ("tidegate-timeout", timeout)]
        options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None, "proxy": None}
        if server.endpoint.path is not None:
            return await unix_connect(server.endpoint.path, url, additional_headers=fields, **options)
        return await connect(url, additional_headers=fields, ssl=server.tls, **options)


def _step_json(site: SenderContext, session: AsyncSession, length: int) -> str:
    given = site.source.draw(length)
    steps = {"tokens": given.tokens} if given.values is None else {"values": given.values.tolist()}
    return json.dumps({**steps, "position": session.position, "top": site.load.top})


def problem(document: dict[str, Any]) -> TidegateError:
    """The error that a problem document tells, as far as a load generator cares."""
    return TidegateError(document["detail"], reason=document["reason"])


class PredictSender:
    """Calls Predict with whole sequences, ``batch`` in a call."""

    def __init__(self, site: SenderContext, sessions: Sequence[AsyncSession]) -> None:
        self._site = site

    async def request(self, length: int) -> LoadReply:
        load = self._site.load
        sequences = [self._site.source.draw(length) for _ in range(load.batch)]
        await self._site.client.predict(load.model, sequences, version=load.version, top=load.top)
        return LoadReply(length * load.batch)

    async def reset(self) -> None:
        """A call leaves nothing."""


class GenerateSender:
    """Calls Generate with a prompt and reads the tokens as they come."""

    def __init__(self, site: SenderContext, sessions: Sequence[AsyncSession]) -> None:
        self._site = site

    async def request(self, length: int) -> LoadReply:
        load, first_token, num_tokens = self._site.load, None, 0
        events = self._site.client.generate(
            load.model, self._site.source.draw(length), version=load.version, max_tokens=load.max_tokens
        )
        # The client's generators are async generators, and leaving one early must end the call at once.
        async with aclosing(cast("Any", events)):
            async for event in events:
                first_token = first_token or self._site.clock.time()
                num_tokens += isinstance(event, GeneratedToken)
        return LoadReply(length + num_tokens, first_token=first_token)

    async def reset(self) -> None:
        """A call leaves nothing."""


SENDERS: dict[Interface, Callable[[SenderContext, Sequence[AsyncSession]], Sender]] = {
    Interface.STREAM: StreamSender,
    Interface.UNARY: UnarySender,
    Interface.COLUMNAR: ColumnarSender,
    Interface.HTTP: HttpSender,
    Interface.WEBSOCKET: WebSocketSender,
    Interface.PREDICT: PredictSender,
    Interface.GENERATE: GenerateSender,
}
