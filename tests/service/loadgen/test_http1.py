"""The bare HTTP client against a server that answers what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tidegate.client.endpoint import parse_endpoint
from tidegate.errors import UnavailableError
from tidegate.loadgen.http1 import HttpConnection, HttpServer, Response

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Peer:
    """Answers the requests of each connection in order, then closes it; keeps what it read."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = answers
        self.requests: list[bytes] = []
        self.num_connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        for answer in self._answers:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            writer.write(answer)
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def connected(peer: Peer) -> AsyncIterator[HttpConnection]:
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    async with server:
        connection = HttpConnection(HttpServer(parse_endpoint(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")))
        yield connection
        connection.close()


async def test_requests_of_a_connection_follow_each_other() -> None:
    chunked = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    peer = Peer([HELLO, chunked, HELLO])
    async with connected(peer) as connection:
        assert await connection.request("GET", "/a") == Response(200, b"hello")
        assert await connection.request("POST", "/b", b"{}", b"Key: value\r\n") == Response(404, b"abcde")
        assert await connection.request("GET", "/c") == Response(200, b"hello")
    assert peer.num_connections == 1
    assert peer.requests[1].startswith(b"POST /b HTTP/1.1\r\nHost: 127.0.0.1:")
    assert peer.requests[1].endswith(b"Key: value\r\n\r\n{}")


async def test_a_connection_that_the_server_closes_after_an_answer_is_made_anew() -> None:
    peer = Peer([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"])
    async with connected(peer) as connection:
        assert [(await connection.request("GET", "/")).body for _ in range(3)] == [b"ok"] * 3
    assert peer.num_connections == 3


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel", b"SSH-2.0-peer\r\n"])
async def test_an_answer_that_breaks_off_or_is_none_is_unavailable(answer: bytes) -> None:
    async with connected(Peer([answer])) as connection:
        with pytest.raises(UnavailableError, match="before the reply"):
            await connection.request("GET", "/")


async def test_nobody_there_is_unavailable_and_says_which_option() -> None:
    with pytest.raises(UnavailableError, match="--http"):
        await HttpConnection(HttpServer(parse_endpoint("127.0.0.1:1"))).request("GET", "/")
