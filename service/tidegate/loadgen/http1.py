"""HTTP/1.1 over one kept connection, one request at a time, at a tenth of what a client for every case costs.

Answers of any length come whole. Follows no redirect, keeps no cookies, and goes by no proxy.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import NamedTuple, cast

import httptools

from tidegate.client.endpoint import Endpoint
from tidegate.client.tls import why_not_connected
from tidegate.errors import TidegateError, UnavailableError

HANDSHAKE_SECONDS = 10.0
"""For TLS, which a server of plain text leaves unanswered."""


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A server of HTTP, and how it is reached.

    Attributes:
        endpoint: Where it is.
        tls: How TLS is spoken, None: not at all.
        fields: Go with every request.
    """

    endpoint: Endpoint
    tls: ssl.SSLContext | None = None
    fields: tuple[tuple[str, str], ...] = ()


class Response(NamedTuple):
    """The answer's status and body."""

    status: int
    body: bytes


class HttpConnection:
    """A connection that is made when it is first needed, and again after it was lost."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        lines = "".join(f"{name}: {value}\r\n" for name, value in server.fields)
        self._fields = f"Host: {server.endpoint.authority}\r\n{lines}"
        self._protocol: _Protocol | None = None

    async def request(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> Response:
        """Send one request and wait for its answer; ``headers`` are whole lines.

        Raises:
            UnavailableError: Nobody is there, or the connection broke.
        """
        if self._protocol is None or self._protocol.is_closed:
            self._protocol = await self._connect()
        head = f"{method} {path} HTTP/1.1\r\n{self._fields}Content-Length: {len(body)}\r\n"
        return await self._protocol.exchange(head.encode() + headers + b"\r\n" + body)

    def close(self) -> None:
        if self._protocol is not None:
            self._protocol.close()
            self._protocol = None

    async def _connect(self) -> _Protocol:
        loop, endpoint, tls = asyncio.get_running_loop(), self._server.endpoint, self._server.tls
        try:
            if endpoint.path is not None:
                _, protocol = await loop.create_unix_connection(_Protocol, endpoint.path)
            else:
                seconds = None if tls is None else HANDSHAKE_SECONDS
                _, protocol = await loop.create_connection(
                    _Protocol, endpoint.host, endpoint.port, ssl=tls, ssl_handshake_timeout=seconds
                )
        except OSError as error:
            raise unreachable(endpoint, error) from None
        return protocol


def unreachable(endpoint: Endpoint, error: OSError) -> TidegateError:
    """Return what is wrong where HTTP is not to be had."""
    if isinstance(error, ssl.SSLError | ConnectionError) and not isinstance(error, ConnectionRefusedError):
        return why_not_connected(endpoint, str(error))
    return UnavailableError(f"no HTTP server answers at {endpoint} (--http): {error.strerror or error}")


class _Protocol(asyncio.Protocol):
    """Feeds httptools' parser, whose callbacks are the methods named on_…."""

    def __init__(self) -> None:
        self.is_closed = False
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._answer: asyncio.Future[Response] | None = None

    def exchange(self, data: bytes) -> asyncio.Future[Response]:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._answer

    def close(self) -> None:
        self.is_closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(UnavailableError("the connection was closed before the reply"))

    def on_message_begin(self) -> None:
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Response(self._parser.get_status_code(), bytes(self._body)))
