"""The metrics of all workers, whichever is asked: it asks its peers for theirs and adds up.

What a worker has counted outlives it. Before it tells its metrics to anybody, and once a second, it writes its counters
to a file of its rank. The next worker of that rank counts on from there, and while there is none the file stands in for
it. So sums never fall, not even by what was told a moment before a SIGKILL; what was counted after the last telling, a
second's worth at most, dies with the worker. Gauges are told by living workers only.
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

from tidegate.clock import Clock
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.peers import Peers
from tidegate.errors import TidegateError
from tidegate.observability.families import RetainedCounters, Snapshot, counted, decode, encode, merged
from tidegate.throttle import Throttle

log = logging.getLogger(__name__)

_SERVICE, _METHOD = "tidegate.cluster.Metrics", "Tell"
_ASK_SECONDS = 1.0
_WRITE_SECONDS = 1.0
_TROUBLE = Throttle(60.0, Clock().monotonic)


class WorkerMetrics:
    """Metrics of one worker and, by asking, of its peers.

    Args:
        worker: Which one it is.
        peers: The others.
        own: Reads this process's metrics.
    """

    def __init__(self, worker: WorkerInfo, peers: Peers, own: Callable[[], Awaitable[Snapshot]]) -> None:
        self._worker = worker
        self._peers = peers
        self._own = own
        self._telling = asyncio.Lock()
        self._file = _file_of(worker, worker.rank)
        self._kept = RetainedCounters(_read(self._file))
        self._writing = asyncio.create_task(self._write_on(), name="tidegate-metrics")

    async def all(self) -> Snapshot:
        """Return the metrics of the server: of all workers as one."""
        others = await asyncio.gather(*map(self._ask, self._worker.other_ranks))
        return merged([await self.tell(), *others])

    async def _ask(self, rank: int) -> Snapshot:
        """Return what a peer says, or, if it is away, what it had counted."""
        peer = self._peers.get(rank)
        assert peer is not None
        try:
            deadline = self._peers.clock.monotonic() + _ASK_SECONDS
            answer: bytes = await peer.call(peer.method(f"/{_SERVICE}/{_METHOD}"), b"", deadline)
        except TidegateError:
            return await asyncio.to_thread(_read, _file_of(self._worker, rank))
        return decode(zlib.decompress(answer))

    async def tell(self) -> Snapshot:
        """Return this worker's metrics, with those of its rank's earlier workers, after writing them down."""
        async with self._telling:  # one file, and what is written last is what was taken last
            snapshot = self._kept.take(await self._own())
            await asyncio.to_thread(_write, self._file, counted(snapshot))
        return snapshot

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """Return what answers the peers."""

        async def answer(_: bytes, __: Any) -> bytes:
            return zlib.compress(encode(await self.tell()), 1)

        return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: grpc.unary_unary_rpc_method_handler(answer)})

    async def stop(self) -> None:
        """Write for the last time."""
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        await self.tell()

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            await self.tell()


def _file_of(worker: WorkerInfo, rank: int) -> Path | None:
    """Return where a rank's counters are kept; None without a folder: then they die with the worker."""
    return None if worker.folder is None else worker.folder / f"{rank}.metrics"


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
            log.warning("the metrics could not be kept: %s", error.strerror)
        with contextlib.suppress(OSError):
            part.unlink()
