"""What a loss of power leaves: a store's files on a disk of their own, of which everything is forgotten that was never
synced.

The disk is an ext4 file system in a file, on a loop device. What its file holds at a moment is what a disk would hold
whose power went then: the system's own cache is not in it. A copy of that file, mounted, is what is found afterwards.
Needs root. Disks that lie about their own caches are not simulated.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bundles import write_tiny_bundle
from tests.chaos.cluster import Replica, running
from tests.chaos.history import At, History, Read, Reply, Step
from tests.chaos.transports import Calls
from tests.chaos.writers import Habit, Writer
from tests.programs import require_mounting
from tests.redis import redis_server

DISK_BYTES = 96 * 2**20
NUM_SESSIONS = 16
CHUNK = (1, 2)


@dataclass(frozen=True, slots=True)
class Loss:
    """Steps of which acknowledgements had come, and those of them that were gone when the power was back."""

    store: str
    acknowledged: int
    lost: int


@contextlib.contextmanager
def disk_with_power(folder: Path) -> Iterator[Path]:
    """A new ext4 disk, mounted at ``folder``/disk; its file is ``folder``/image."""
    require_mounting()
    folder.mkdir()
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["/sbin/mkfs.ext4", "-q", str(image)], check=True)
    with _mounted(image, folder / "disk") as disk:
        yield disk


@contextlib.contextmanager
def disk_after_loss(image: Path, folder: Path) -> Iterator[Path]:
    """A copy of ``image`` as it is now, mounted: its journal is played, as after any loss of power."""
    folder.mkdir()
    subprocess.run(["/bin/cp", "--sparse=always", str(image), str(folder / "image")], check=True)
    with _mounted(folder / "image", folder / "disk") as disk:
        yield disk


@contextlib.contextmanager
def _mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["/bin/mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", "--lazy", str(place)], check=True)


async def lose_power(store: str, sync: str, folder: Path, num_steps: int) -> Loss:
    """Step sessions until ``num_steps`` are acknowledged, take the power away, and count what is gone.

    Args:
        store: ``sqlite`` (``sync`` is normal or full) or ``redis`` (always or everysec).
        sync: When the store syncs.
        folder: Where everything is made.
        num_steps: How many.
    """
    write_tiny_bundle(folder / "bundles")
    history = History()
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(disk_with_power(folder / "before"))
        async with _serving(store, sync, folder / "bundles", disk) as replica:
            told = await _step_all(replica, history, num_steps)
            found_on = stack.enter_context(disk_after_loss(folder / "before/image", folder / "after"))
        async with _serving(store, sync, folder / "bundles", found_on) as replica:
            found = await _positions(replica)
    lost = sum(max(0, position - found[session]) for session, position in told.items())
    return Loss(f"{store} {sync}", sum(told.values()), lost)


@contextlib.asynccontextmanager
async def _serving(store: str, sync: str, bundles: Path, disk: Path) -> AsyncIterator[Replica]:
    with contextlib.ExitStack() as stack:
        flags: tuple[str, ...] = ("--store", "sqlite", "--data-dir", str(disk), "--sqlite-sync", sync)
        if store == "redis":
            redis = stack.enter_context(redis_server("--dir", str(disk), appendfsync=sync))
            flags = ("--store", redis.url)
        replica = Replica(bundles, "r0", flags)
        async with running(replica):
            yield replica


def _sessions() -> list[str]:
    return [f"s-{number}" for number in range(NUM_SESSIONS)]


async def _step_all(replica: Replica, history: History, num_steps: int) -> dict[str, int]:
    """Step the sessions together; return the position of each that was told last, as the power goes."""
    calls = Calls(replica.grpc)
    writer = Writer("client", (), [calls], Habit.PLAIN, history, 0)
    told = dict.fromkeys(_sessions(), 0)

    async def step(session: str) -> None:
        while sum(told.values()) < num_steps:
            reply = await writer.settle(session, Step(told[session], CHUNK))
            assert isinstance(reply, Reply)
            told[session] = reply.position

    await asyncio.gather(*(calls.open(session, "tiny") for session in told))
    await asyncio.gather(*(step(session) for session in told))
    await calls.close()
    return told


async def _positions(replica: Replica) -> dict[str, int]:
    """Where each session is; 0 where it is not known any more."""
    calls = Calls(replica.grpc)
    writer = Writer("client", (), [calls], Habit.PLAIN, History(), 0)
    told = {session: await writer.settle(session, Read()) for session in _sessions()}
    await calls.close()
    return {session: answer.position if isinstance(answer, At) else 0 for session, answer in told.items()}
