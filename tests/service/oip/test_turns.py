"""Turns of a key."""

from __future__ import annotations

import asyncio

from tidegate.transports.oip.sequences.turns import Turns


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_gives_up_lets_nobody_overtake() -> None:
    turns: Turns[str] = Turns()
    done: list[int] = []
    gates = [asyncio.Event() for _ in range(4)]

    async def work(number: int) -> None:
        async with turns.of("key"):
            await gates[number].wait()
            done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    await settle()
    tasks[2].cancel()
    gates[3].set()
    gates[1].set()
    await settle()
    assert done == []
    gates[0].set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert done == [0, 1, 3]


async def test_other_keys_do_not_wait() -> None:
    turns: Turns[str] = Turns()
    async with turns.of("one"):
        assert not turns.of("two").locked()
