"""h2corn alone, by a bare ASGI function: gRPC, unary and bidirectional, HTTP and WebSockets. No model, no session.

Messages are neither parsed nor written: their bytes are ready.
"""

from __future__ import annotations

import asyncio

from bench.floors.http_echo import echo as echo_http
from bench.floors.replies import step_reply, stream_reply
from bench.floors.running import run, say_ready
from tidegate.transports.asgi import Receive, Scope, Send
from tidegate.transports.grpc.framing import MessageReader, pack
from tidegate.transports.h2corn_server import MIB, H2cornServer, Limits
from tidegate.transports.listeners import listening

UNARY = pack(step_reply().SerializeToString())
STREAM = pack(stream_reply().SerializeToString())
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/grpc")],
    "trailers": True,
}
END = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer whatever comes, by its kind."""
    if scope["type"] == "http" and scope["path"].endswith("/Stream"):
        await echo_messages(receive, send)
    elif scope["type"] == "http" and any(value == b"application/grpc" for _, value in scope["headers"]):
        while (await receive()).get("more_body", False):
            pass
        await send(START)
        await send({"type": "http.response.body", "body": UNARY})
        await send(END)
    else:
        await echo_http(scope, receive, send)


async def echo_messages(receive: Receive, send: Send) -> None:
    """Answer each message of a stream."""
    reader, is_more = MessageReader(4 * MIB), True
    await send(START)
    while is_more:
        event = await receive()
        is_more = event.get("more_body", False)
        message = reader.take(event.get("body", b""))
        while message is not None:
            await send({"type": "http.response.body", "body": STREAM, "more_body": True})
            message = reader.take()
    await send({"type": "http.response.body"})
    await send(END)


async def main() -> None:
    with listening("http", "127.0.0.1:0") as listener:
        await H2cornServer(echo, listener, Limits()).start()
        say_ready(listener.getsockname()[1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(main())
