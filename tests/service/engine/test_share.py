"""A request's share of a queue."""

from __future__ import annotations

import asyncio

from tidegate.engine.share import Share
from tidegate.limits import QUEUE_SHARE


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_goes_beyond_the_share_waits_for_what_is_before_it() -> None:
    share = Share(2 * QUEUE_SHARE)
    held: list[asyncio.Future[None]] = []

    async def submit_all() -> None:
        for _ in range(5):
            await share.room()
            held.append(asyncio.get_running_loop().create_future())
            share.take(held[-1])

    submitting = asyncio.create_task(submit_all())
    await settle()
    assert len(held) == 2
    held[1].set_result(None)
    await settle()
    assert len(held) == 3
    held[0].set_result(None)
    held[2].set_result(None)
    await submitting
    assert len(held) == 5
    assert not share.has_failed


async def test_what_is_larger_than_the_share_goes_alone() -> None:
    share = Share(QUEUE_SHARE)
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await share.room(100)
    share.take(first, 100)
    waiting = asyncio.create_task(share.room(100))
    await settle()
    assert not waiting.done()
    first.set_result(None)
    await waiting


async def test_a_small_queue_has_room_for_one() -> None:
    share = Share(1)
    await share.room()


async def test_it_tells_that_something_failed() -> None:
    share = Share(QUEUE_SHARE)
    result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    share.take(result)
    result.set_exception(ValueError("no"))
    await share.room()
    assert share.has_failed
