"""A request's share of a queue."""

from __future__ import annotations

import asyncio

from tidegate.engine.loop import QueueShare
from tidegate.limits import QUEUE_SHARE


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_goes_beyond_the_share_waits_for_what_is_before_it() -> None:
    share = QueueShare(2 * QUEUE_SHARE)
    held: list[asyncio.Future[None]] = []

    async def submit_all() -> None:
        for _ in range(5):
            await share.wait_for_room()
            held.append(asyncio.get_running_loop().create_future())
            share.take()
            held[-1].add_done_callback(lambda _: share.give_back())

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
    share = QueueShare(QUEUE_SHARE)
    await share.wait_for_room(100)
    share.take(100)
    waiting = asyncio.create_task(share.wait_for_room(100))
    await settle()
    assert not waiting.done()
    share.give_back(100)
    await waiting


async def test_a_small_queue_has_room_for_one() -> None:
    share = QueueShare(1)
    await share.wait_for_room()


async def test_it_tells_that_something_failed() -> None:
    share = QueueShare(QUEUE_SHARE)
    share.take()
    share.give_back(has_failed=True)
    await share.wait_for_room()
    assert share.has_failed
