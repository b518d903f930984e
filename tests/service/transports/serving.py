"""An ASGI application on h2corn, on a real socket of the running event loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tidegate.transports.asgi import Application
from tidegate.transports.h2corn_server import H2cornServer, Limits, TlsFiles
from tidegate.transports.listeners import listening


@dataclass(frozen=True, slots=True)
class Front:
    """A server, and where it listens."""

    server: H2cornServer
    listener: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def front(
    application: Application, at: str = "127.0.0.1:0", limits: Limits | None = None, tls: TlsFiles | None = None
) -> AsyncIterator[Front]:
    """Serve until the block ends."""
    with listening("http", at) as listener:
        server = H2cornServer(application, listener, limits or Limits(), tls, grace=10, overlap=10)
        await server.start()
        try:
            yield Front(server, listener)
        finally:
            await server.stop(grace=0)
