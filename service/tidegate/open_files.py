"""How many files this process may have open: every connection is one, and who is out of them can accept nobody.

The event loop and gRPC's core both go on when they cannot accept (connections wait, or are closed at once), and say
nothing, or the same line again and again. So it is watched from here, whatever accepts.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
from collections.abc import Awaitable, Callable

from tidegate.errors import ConfigurationError

log = logging.getLogger(__name__)

MOST = 2**20
"""Where the hard limit is none at all, as in some containers: tables of open files are made for the limit."""

_LEAST = 64
"""What a server opens to start; with too few, gRPC's core crashes."""

_LITTLE = 4096
_ROOM = 8
_WATCH_SECONDS = 1.0


def raise_limit(most: int = MOST) -> None:
    """Raise the soft limit of open files to the hard one, and log what it is where that is little.

    Raises:
        ConfigurationError: It is too little for a server.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # the kernel's own limit is lower than it says
            log.warning("the limit of open files stays %d: %s", soft, error)
            wanted = soft
        else:
            log.info("the limit of open files was raised", extra={"limit": wanted, "before": soft})
    if wanted < _LEAST:
        raise ConfigurationError(
            f"no more than {wanted} files can be open, a server needs {_LEAST}: raise `ulimit -Hn`"
        )
    if wanted < _LITTLE:
        log.warning("no more than %d files can be open, and so fewer connections: raise `ulimit -Hn`", wanted)


async def watch(
    is_out: Callable[[], bool] | None = None,
    has_room: Callable[[], bool] | None = None,
    pause: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Log when this process runs out of files it may open, and when there is room again; never ends.

    Args:
        is_out: Whether not one more can be opened; None: as the system says.
        has_room: Whether some more can, after they were out; None: as the system says.
        pause: Waits until it is time to look again; None: a second.
    """
    is_out, has_room, pause = is_out or _is_out, has_room or _has_room, pause or _pause
    while True:
        await pause()
        if not is_out():
            continue
        limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        log.error(
            "out of file descriptors: new connections wait, or are closed at once, until others end; raise the limit "
            "of %d by `ulimit -n` (LimitNOFILE of systemd, --ulimit nofile of Docker)",
            limit,
            extra={"limit": limit, "hard_limit": hard},
        )
        while not has_room():
            await pause()
        log.warning("there are file descriptors again")


async def _pause() -> None:
    await asyncio.sleep(_WATCH_SECONDS)


def _is_out() -> bool:
    try:
        os.close(os.dup(2))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return False


def _has_room() -> bool:
    """Whether there is some: a single free one is the next connection's."""
    try:
        num_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a path for each would be too much
    except FileNotFoundError:  # no such system
        return not _is_out()
    except OSError:
        return False
    return num_open + _ROOM <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]
