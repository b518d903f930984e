"""Does the front hold? Messages on many streams, with half-closes, cancels, stalls and connections that break.

    python -m bench.soak                        # 10,000,000 messages, up to half an hour
    python -m bench.soak --messages 20000       # seconds; a test runs this

Every stream is an echo through the gRPC adapter on h2corn, in a process of its own. A reply carries its request's
number and the server's count, so that a message that is lost, doubled or out of order is found out; whatever does not
answer within `PATIENCE` seconds counts as hung. The server's memory is read while it runs. One of the connections goes
through a proxy that resets it now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import uvloop
from grpc import aio

from bench.floors.soak_echo import COUNT, HEAD
from bench.processes import Running, floor

PATIENCE = 30.0
IN_FLIGHT = 32
BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
"""What grpcio's client says when its connection breaks: while it reads, and while it writes."""

STREAMS_A_CONNECTION = 8


class Plan(NamedTuple):
    """What a stream does: messages that it sends, where it stops reading for a while, and how it ends."""

    num_messages: int
    size: int
    stalls_at: int
    stall_seconds: float
    cancels_at: int


def make_plan(dice: random.Random, most: int) -> Plan:
    """Draw a stream's life."""
    num_messages = min(1 + int(dice.expovariate(1 / 400)), most)
    size = dice.choices([0, 100, 4_000, 70_000, 1_000_000], [50, 40, 8, 1.5, 0.5])[0]
    if size >= 70_000:
        num_messages = min(num_messages, 20)
    anywhere = dice.randrange(num_messages)
    stalls = dice.random() < 0.15
    cancels = dice.random() < 0.2
    return Plan(
        num_messages,
        size,
        anywhere if stalls else num_messages,
        dice.uniform(0.05, 2),
        dice.randrange(num_messages) if cancels else num_messages,
    )


class EndedError(Exception):
    """A stream ended before it was due."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, details)

    def code(self) -> grpc.StatusCode:
        return self.args[0]  # type: ignore[no-any-return]

    def details(self) -> str:
        return self.args[1]  # type: ignore[no-any-return]


class Soak:
    """Streams until so many messages were answered."""

    def __init__(self, num_messages: int, seed: int) -> None:
        self.left = num_messages
        self.dice = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    async def keep_streaming(self, channel: aio.Channel, *, may_break: bool) -> None:
        """Open one stream after the other on a connection."""
        method = channel.stream_stream("/soak.Soak/Echo", bytes, bytes)
        while self.left > 0:
            plan = make_plan(self.dice, self.left)
            self.left -= plan.num_messages
            try:
                await self._stream(method, plan)
            except (aio.AioRpcError, EndedError) as error:
                if not may_break or error.code() not in BROKEN:
                    self._fault(f"a stream ended with {error.code().name}: {error.details()}")
                self.counts["streams broken by a reset"] += 1
                self.left += plan.num_messages // 2  # about so many were not answered

    async def _stream(self, method: Any, plan: Plan) -> None:
        call = method(timeout=None)
        room = asyncio.Semaphore(IN_FLIGHT)
        writing = asyncio.create_task(self._write(call, plan, room))
        try:
            await self._read(call, plan, room)
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError, asyncio.InvalidStateError, aio.AioRpcError):
                await writing
        self.counts["streams"] += 1

    async def _write(self, call: Any, plan: Plan, room: asyncio.Semaphore) -> None:
        padding = bytes(plan.size)
        for number in range(plan.num_messages):
            await room.acquire()
            await call.write(struct.pack("<Q", number) + padding)
        await call.done_writing()

    async def _read(self, call: Any, plan: Plan, room: asyncio.Semaphore) -> None:
        for number in range(plan.num_messages):
            if number == plan.cancels_at:
                call.cancel()
                self.counts["streams cancelled"] += 1
                return
            if number == plan.stalls_at:
                self.counts["stalls"] += 1
                await asyncio.sleep(plan.stall_seconds)
            reply = await self._in_time(call.read(), f"reply {number}")
            if reply is aio.EOF:  # type: ignore[attr-defined]
                raise EndedError(await call.code(), await call.details())
            told, count = HEAD.unpack_from(reply)
            if (told, count) != (number, number):
                self._fault(f"reply {number} is {told}, by the server's count {count}")
            if len(reply) != HEAD.size + plan.size:
                self._fault(f"reply {number} has {len(reply)} bytes")
            self.counts["messages"] += 1
            room.release()
        if await self._in_time(call.read(), "the end") is not aio.EOF:  # type: ignore[attr-defined]
            self._fault("a reply too many")
        trailers = dict(await self._in_time(call.trailing_metadata(), "the trailers"))
        code = await self._in_time(call.code(), "the status")
        if code is not grpc.StatusCode.OK:
            raise EndedError(code, await call.details())
        if trailers.get(COUNT) != str(plan.num_messages):
            self._fault(f"the server counts {trailers.get(COUNT)} messages of {plan.num_messages}")
        self.counts["streams half-closed"] += 1

    async def _in_time(self, work: Any, what: str) -> Any:
        try:
            async with asyncio.timeout(PATIENCE):
                return await work
        except TimeoutError:
            self._fault(f"hung: {what}")
            raise

    def _fault(self, text: str) -> None:
        self.counts["faults"] += 1
        if len(self.faults) < 20:
            self.faults.append(text)


@contextlib.asynccontextmanager
async def breaking_proxy(port: int, dice: random.Random) -> AsyncIterator[int]:
    """A proxy whose connections are reset after a while; yields its port."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        pipes = [asyncio.create_task(pipe(reader, far_writer)), asyncio.create_task(pipe(far_reader, writer))]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(pipes, timeout=dice.uniform(1, 6), return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, far_writer):  # with a reset, not with an orderly end
            each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.transport.abort()
        for task in pipes:
            task.cancel()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def soak(server: Running, num_messages: int, num_connections: int, seed: int) -> dict[str, Any]:
    """Run, and return what was counted and found."""
    work = Soak(num_messages, seed)
    memory: list[int] = []
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        proxied = await stack.enter_async_context(breaking_proxy(server.port("grpc"), work.dice))
        tasks = []
        for number in range(num_connections):
            may_break = number == num_connections - 1
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
            options += [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
            port = proxied if may_break else server.port("grpc")
            channel = await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{port}", options=options))
            tasks += [
                asyncio.create_task(work.keep_streaming(channel, may_break=may_break))
                for _ in range(STREAMS_A_CONNECTION)
            ]
        watching = asyncio.create_task(_watch(server, work, memory))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        watching.cancel()
        failures = [repr(task.exception()) for task in done if task.exception() is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    seconds = time.monotonic() - began
    running = await _running_calls(server.port("grpc"))
    memory.append(server.resident_bytes)
    third = memory[len(memory) // 3 :]
    return {
        **work.counts,
        "seconds": round(seconds, 1),
        "messages_per_s": round(work.counts["messages"] / seconds),
        "faults": work.faults + failures,
        "calls_left": running,
        "memory_mb": [round(each / 2**20) for each in memory[:: max(len(memory) // 10, 1)]],
        "memory_growth_mb": round((max(third[len(third) // 2 :]) - max(third[: len(third) // 2 + 1])) / 2**20, 1),
    }


async def _watch(server: Running, work: Soak, memory: list[int]) -> None:
    while True:
        await asyncio.sleep(1)
        memory.append(server.resident_bytes)
        if len(memory) % 60 == 0:
            print(f"{work.counts['messages']:,} messages, {memory[-1] / 2**20:.0f} MB", flush=True)  # noqa: T201


async def _running_calls(port: int) -> int:
    """Calls that the server still has, when it has had some time to notice that their clients are gone."""
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        count = channel.unary_unary("/soak.Soak/Running", bytes, bytes)
        for _ in range(50):
            running = int(await count(b""))
            if not running:
                break
            await asyncio.sleep(0.1)
    return running


def run(num_messages: int, num_connections: int = 8, seed: int = 1) -> dict[str, Any]:
    """Start a server and soak it."""
    with floor("soak_echo") as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(soak(server, num_messages, num_connections, seed))


def main() -> None:
    """Print what was found; the exit status is 1 where anything was lost, out of order, hung or left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--connections", type=int, default=8, help=f"each of {STREAMS_A_CONNECTION} streams")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    found = run(asked.messages, asked.connections, asked.seed)
    print(json.dumps(found, indent=2))  # noqa: T201
    sys.exit(bool(found["faults"] or found["calls_left"]))


if __name__ == "__main__":
    main()
