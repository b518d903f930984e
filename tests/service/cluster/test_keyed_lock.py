"""KeyedLock of a key."""

from __future__ import annotations

import asyncio

from tidegate.cluster.peers import KeyedLock


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_gives_up_lets_nobody_overtake() -> None:
    locks: KeyedLock[str] = KeyedLock()
    done: list[int] = []
    gates = [asyncio.Event() for _ in range(4)]

    async def work(number: int) -> None:
        async with locks.of("key"):
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
    locks: KeyedLock[str] = KeyedLock()
    async with locks.of("one"):
        assert not locks.of("two").locked()
