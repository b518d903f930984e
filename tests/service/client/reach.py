"""Servers that have nothing, behind TLS or not: on h2corn, and on gRPC's own server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import aio

from tests.certificates import Pair
from tests.service.transports.serving import front
from tidegate.transports.asgi import Receive, Scope, Send
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.h2corn_server import TlsFiles
from tidegate.v1 import models_pb2, sessions_pb2


class Empty:
    """As much of a server as is asked for: it has no models and no sessions."""

    async def list_models(self, request: Any, context: Any) -> models_pb2.ListModelsReply:
        return models_pb2.ListModelsReply()

    async def list_sessions(self, request: Any, context: Any) -> sessions_pb2.ListSessionsReply:
        return sessions_pb2.ListSessionsReply()


def add_empty(server: Any) -> None:
    empty = Empty()
    for service, method, request in (
        ("tidegate.v1.Models", empty.list_models, models_pb2.ListModelsRequest),
        ("tidegate.v1.Sessions", empty.list_sessions, sessions_pb2.ListSessionsRequest),
    ):
        write: Any = lambda reply: reply.SerializeToString()  # noqa: E731
        methods = {"List": grpc.unary_unary_rpc_method_handler(method, request.FromString, write)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


class Recorder:
    """An application that keeps the head of each request; over HTTP it says metrics."""

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self._adapter = GrpcAdapter()
        add_empty(self._adapter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.heads.append(head)
        if head.get("content-type", "").startswith("application/grpc"):
            await self._adapter(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"tidegate_ready 1\n"})


@asynccontextmanager
async def on_h2corn(at: str = "127.0.0.1:0", tls: TlsFiles | None = None) -> AsyncIterator[tuple[str, Recorder]]:
    """Yields ``HOST:PORT``, or what it was asked to listen at, and who sees the requests."""
    recorder = Recorder()
    async with front(recorder, at, tls=tls) as served:
        yield at if at.startswith("unix") else served.address, recorder


@asynccontextmanager
async def on_grpcio(pair: Pair | None = None, client_ca: bytes | None = None) -> AsyncIterator[str]:
    """Yields ``HOST:PORT``."""
    server = aio.server()
    add_empty(server)
    if pair is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        files = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
        credentials = grpc.ssl_server_credentials(files, client_ca, client_ca is not None)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
