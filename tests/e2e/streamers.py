"""A client process: many gRPC streams at once. It tells when all are half-way, and goes on when it is told to.

usage: python -m tests.e2e.streamers SERVER MODEL NUM_STREAMS TEXT
"""

from __future__ import annotations

import asyncio
import json
import sys

from tidegate.client import AsyncClient


async def main(server: str, model: str, num_streams: int, text: str) -> None:
    """Stream ``text``, rotated by its own number, through each of ``num_streams`` sessions; print all surprises."""
    half_way = asyncio.Barrier(num_streams + 1)
    go_on = asyncio.Event()

    async def stream(client: AsyncClient, letters: str) -> list[float]:
        surprises = []
        async with client.open(model) as session, session.stream() as steps:
            for index, letter in enumerate(letters):
                if index == len(letters) // 2:
                    await half_way.wait()
                    await go_on.wait()
                reply = await steps.step(letter)
                assert reply.prediction.surprise is not None
                surprises.append(reply.prediction.surprise.mean)
        return surprises

    async with AsyncClient(server) as client, asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(stream(client, text[i:] + text[:i])) for i in range(num_streams)]
        await half_way.wait()
        tell("half-way")
        await asyncio.to_thread(sys.stdin.readline)
        go_on.set()
    tell(json.dumps([stream.result() for stream in streams]))


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
