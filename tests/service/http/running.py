"""The application on a real server in the test's own event loop, and a client that speaks HTTP byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self

from fastapi import FastAPI

from tidegate.config import load_settings
from tidegate.transports.application import one_application
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.h2corn_server import H2cornServer, Limits
from tidegate.transports.listeners import listen

SECONDS = 60


class Running(NamedTuple):
    """A server that listens."""

    server: H2cornServer
    port: int


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[Running]:
    """Serve until the block ends."""
    with listen("http", "127.0.0.1:0") as listener:
        server = H2cornServer(
            one_application(GrpcAdapter(), app.state.steps.answer, app, load_settings({})), listener, Limits()
        )
        await server.start()
        try:
            yield Running(server, listener.getsockname()[1])
        finally:
            await server.stop(grace=0)


async def until(is_so: Callable[[], bool]) -> None:
    """Let the event loop run until something is so."""
    async with asyncio.timeout(SECONDS):
        while not is_so():  # noqa: ASYNC110 - sockets have no event to wait for
            await asyncio.sleep(0)


class Reply(NamedTuple):
    """What came back: the head's fields by name, without the date."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection."""

    def __init__(self, running: Running) -> None:
        self._port = running.port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    def hang_up(self) -> None:
        self._writer.close()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def reply(self) -> Reply:
        async with asyncio.timeout(SECONDS):
            head = await self._reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 100"):
                head = await self._reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().rstrip().split("\r\n")
            fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            del fields["date"]
            body = await self._reader.readexactly(int(fields["content-length"]))
        return Reply(int(status.split()[1]), fields, body)

    async def is_closed(self) -> bool:
        """Whether the server has hung up, once all it sent is read."""
        async with asyncio.timeout(SECONDS):
            return await self._reader.read(1) == b""


def request(path: str, body: bytes, *fields: str, method: str = "POST", version: str = "1.1") -> bytes:
    """A request with a body of declared length."""
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *fields, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body
