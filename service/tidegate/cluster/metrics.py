"""The metrics of all workers: the worker that is asked collects those of its peers and adds them up.

Counters outlive a worker. It writes them to a file of its rank once a second, and each time before it reports them. The
next worker of that rank continues from the file, and while there is none the file stands in for it. So sums never fall,
even if a worker is killed right after a report. Counts since the last report, of a second at most, die with the worker.
Gauges are reported by living workers only.
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
        """Return the metrics of a peer or, if it is away, its last written counters."""
        peer = self._peers.get(rank)
        assert peer is not None
        try:
            deadline = self._peers.clock.monotonic() + _ASK_SECONDS
            answer: bytes = await peer.call(peer.method(f"/{_SERVICE}/{_METHOD}"), b"", deadline)
        except TidegateError:
            return await asyncio.to_thread(_read, _file_of(self._worker, rank))
        return decode(zlib.decompress(answer))

    async def tell(self) -> Snapshot:
        """Write the counters, then return this worker's metrics, which include those of earlier workers of its rank."""
        async with self._telling:  # so that the file holds the latest snapshot
            snapshot = self._kept.take(await self._own())
            await asyncio.to_thread(_write, self._file, counted(snapshot))
        return snapshot

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """Return the gRPC handler that answers the peers."""

        async def answer(_: bytes, __: Any) -> bytes:
            return zlib.compress(encode(await self.tell()), 1)

        return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: grpc.unary_unary_rpc_method_handler(answer)})

    async def stop(self) -> None:
        """Write the counters for the last time."""
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)
        await self.tell()

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            await self.tell()


def _file_of(worker: WorkerInfo, rank: int) -> Path | None:
    """Return the file of a rank's counters; None without a folder: then they die with the worker."""
    return None if worker.folder is None else worker.folder / f"{rank}.metrics"


def _read(file: Path | None) -> Snapshot:
    if file is None:
        return ()
    try:
        return decode(file.read_bytes())
    except FileNotFoundError:
        return ()


def _write(file: Path | None, snapshot: Snapshot) -> None:
    """Replace the file atomically: it can be read, or this process killed, at any moment."""
    if file is None:
        return
    part = file.with_suffix(".part")
    try:
        part.write_bytes(encode(snapshot))
        part.replace(file)
    except OSError as error:
        # A full disk, for example. The reported metrics stay correct as long as this process lives.
        if _TROUBLE.let_through(error.errno) is not None:
            log.warning("could not save the metrics: %s", error.strerror)
        with contextlib.suppress(OSError):
            part.unlink()
