"""The gRPC adapter alone, on h2corn: the same handlers as `grpc_echo`, so what differs is the server around them."""

from __future__ import annotations

import asyncio

from bench.floors.grpc_echo import HANDLERS
from bench.floors.running import run, say_ready
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.h2corn_server import H2cornServer, Limits
from tidegate.transports.listeners import listen


async def main() -> None:
    adapter = GrpcAdapter()
    for name, methods in HANDLERS.items():
        adapter.add_registered_method_handlers(name, methods)
    with listen("echo", "127.0.0.1:0") as listener:
        await H2cornServer(adapter, listener, Limits()).start()
        say_ready(listener.getsockname()[1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(main())
