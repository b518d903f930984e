"""What a flood leaves with the C library's allocator is given back to the system.

glibc keeps freed blocks for the next request, in an arena of each thread: a few requests of 4 MB leave tens of MiB with
a process that does not need them. Elsewhere, and with other allocators, nothing is done.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

_SECONDS = 5.0
_GROWTH = 1.05
_STATM = Path("/proc/self/statm")


async def give_back_forever(
    resident: Callable[[], int] | None = None,
    trim: Callable[[], None] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Look every few seconds whether the process has grown, and then trim it, in a thread; a trim takes milliseconds.

    Args:
        resident: Returns the process's resident bytes.
        trim: Gives back what is free.
        sleep: Waits.
    """
    resident, trim = resident or _resident, trim or _trimmer()
    if trim is None:
        return
    before = resident()
    while True:
        await sleep(_SECONDS)
        if resident() > _GROWTH * before:
            await asyncio.to_thread(trim)
        before = resident()


def _resident() -> int:
    return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")


def _trimmer() -> Callable[[], None] | None:
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return lambda: malloc_trim(0)
