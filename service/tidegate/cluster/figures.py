"""The figures of all workers, whichever is asked: each tells its own over its Unix socket, and the asked one adds up.

What a worker has counted outlives it. Before it tells its figures to anybody, and once a second, it writes its counters
to a file of its seat; the worker that takes the seat next counts on from there, and while the seat is empty the file
speaks for it. So sums never fall, not even by what was told a moment before a SIGKILL; what was counted after the last
telling, a second's worth at most, dies with the worker. Gauges are told by the living only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from tidegate.clock import Clock
from tidegate.cluster.seat import Seat
from tidegate.observability.families import RetainedCounters, Snapshot, counted, decode, encode, merged
from tidegate.throttle import Throttle

log = logging.getLogger(__name__)

_SERVICE, _METHOD = "tidegate.cluster.Figures", "Tell"
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
_ASK_SECONDS = 1.0
_WRITE_SECONDS = 1.0
_TROUBLE = Throttle(60.0, Clock().monotonic)


class WorkerFigures:
    """Figures of one worker and, by asking, of its fellows.

    Args:
        seat: Its place.
        own: Reads this process's figures.
    """

    def __init__(self, seat: Seat, own: Callable[[], Awaitable[Snapshot]]) -> None:
        self._own = own
        self._telling = asyncio.Lock()
        self._file = _file(seat, seat.number)
        self._kept = RetainedCounters(_read(self._file))
        self._fellows = [_Fellow(seat, number) for number in seat.others]
        self._writing = asyncio.create_task(self._write_on(), name="tidegate-figures")

    async def all(self) -> Snapshot:
        """Return the figures of the server: of all workers as one."""
        asked = await asyncio.gather(*(fellow.ask() for fellow in self._fellows))
        return merged([await self.tell(), *asked])

    async def tell(self) -> Snapshot:
        """Return this worker's figures, with those of the seat's earlier lives, having written them down."""
        async with self._telling:  # one file, and what is written last is what was taken last
            snapshot = self._kept.take(await self._own())
            await asyncio.to_thread(_write, self._file, counted(snapshot))
        return snapshot

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """What answers the fellows."""

        async def answer(_: bytes, __: Any) -> bytes:
            return zlib.compress(encode(await self.tell()), 1)

        return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: grpc.unary_unary_rpc_method_handler(answer)})

    async def stop(self) -> None:
        """Write for the last time, and let go of the fellows."""
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        await self.tell()
        await asyncio.gather(*(fellow.close() for fellow in self._fellows))

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            await self.tell()


class _Fellow:
    """Another worker's figures."""

    def __init__(self, seat: Seat, number: int) -> None:
        self._file = _file(seat, number)
        self._address = seat.target(number)
        self._channel = self._connect()

    async def ask(self) -> Snapshot:
        """Return what it says, or, where it is away, what it had counted."""
        try:
            tell = self._channel.unary_unary(f"/{_SERVICE}/{_METHOD}", bytes, bytes)
            answer: bytes = await tell(b"", timeout=_ASK_SECONDS)
            return decode(zlib.decompress(answer))
        except grpc.RpcError:
            # A channel that has failed waits before it tries again; a new one finds the next worker at once.
            failed, self._channel = self._channel, self._connect()
            await failed.close(None)
            return await asyncio.to_thread(_read, self._file)

    def _connect(self) -> aio.Channel:
        return aio.insecure_channel(self._address, options=_OPTIONS)

    async def close(self) -> None:
        await self._channel.close(None)


def _file(seat: Seat, number: int) -> Path | None:
    """Where a seat's counters are kept; None where there is no folder for it: then they die with the worker."""
    return None if seat.folder is None else seat.folder / f"{number}.figures"


def _read(file: Path | None) -> Snapshot:
    if file is None:
        return ()
    try:
        return decode(file.read_bytes())
    except FileNotFoundError:
        return ()


def _write(file: Path | None, snapshot: Snapshot) -> None:
    """Put the file in its place whole: it may be read, or this process killed, at any moment."""
    if file is None:
        return
    part = file.with_suffix(".part")
    try:
        part.write_bytes(encode(snapshot))
        part.replace(file)
    except OSError as error:
        # A full disk: what is told is right all the same, as long as this process lives.
        if _TROUBLE.let_through(error.errno) is not None:
            log.warning("the figures could not be kept: %s", error.strerror)
        with contextlib.suppress(OSError):
            part.unlink()
