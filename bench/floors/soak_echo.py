"""The echo that `bench.soak` drives: the gRPC adapter on h2corn, with the limits that the server has."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import grpc
from grpc import aio

from bench.floors.running import run, say_ready
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.h2corn_server import H2cornServer, Limits
from tidegate.transports.listeners import listen

HEAD = struct.Struct("<QQ")
"""Of a reply: the request's number, and how many messages of the stream the server had before it."""

COUNT = "x-count"
"""Trailing metadata: how many messages the stream had."""


async def echo(requests: object, context: Any) -> None:
    """Return each message with the server's count of the stream's messages before it."""
    count = 0
    while (request := await context.read()) is not aio.EOF:  # type: ignore[attr-defined]
        (number,) = struct.unpack_from("<Q", request)
        await context.write(HEAD.pack(number, count) + request[8:])
        count += 1
    context.set_trailing_metadata(((COUNT, str(count)),))


async def serve() -> None:
    """Serve echoes, and how many of them run, until the process is ended."""
    adapter = GrpcAdapter(max_message=2 << 20)
    running = 0

    async def counted(requests: object, context: Any) -> None:
        nonlocal running
        running += 1
        try:
            await echo(requests, context)
        finally:
            running -= 1

    async def count(request: bytes, context: Any) -> bytes:
        return str(running).encode()

    methods: dict[str, Any] = {
        "Echo": grpc.stream_stream_rpc_method_handler(counted),
        "Running": grpc.unary_unary_rpc_method_handler(count),
    }
    adapter.add_registered_method_handlers("soak.Soak", methods)
    with listen("soak", "127.0.0.1:0") as listener:
        await H2cornServer(adapter, listener, Limits()).start()
        say_ready(listener.getsockname()[1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(serve())
