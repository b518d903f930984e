"""Inference on a worker: requests of a sequence that another worker holds are passed on to it.

The id of a sequence's first session says which worker holds it (`cluster.info`). What belongs to no sequence is served
where it arrives. The outcome, an error too, is the same as if the owner had been asked itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import GeneratorType
from typing import Any, TypeVar

from tidegate.api import Core
from tidegate.cluster.peers import KeyedLock, Peer, Peers
from tidegate.errors import TidegateError
from tidegate.oip import service_pb2
from tidegate.slices import Slices, in_slices
from tidegate.transports.oip.inference import Answer, Inference
from tidegate.transports.oip.messages import decode_reply, decode_statistics, encode_request
from tidegate.transports.oip.requests import InferReply, InferRequest
from tidegate.transports.oip.sequences import Key, session_ids
from tidegate.transports.oip.statistics import summed
from tidegate.transports.reply_queue import abandon

Json = dict[str, Any]
Encoded = TypeVar("Encoded")
_STATISTICS_SECONDS = 1.0


class RoutedInference(Inference):
    """What the world asks of a worker; its peers ask ``local``, which passes nothing on."""

    def __init__(self, core: Core, local: Inference, peers: Peers) -> None:
        super().__init__(core)
        self.sequences, self.statistics = local.sequences, local.statistics
        self.models = local.models  # a sequence that began there goes on here
        self._peers = peers
        # Calls may overtake each other, those of a sequence may not.
        self._locks: KeyedLock[Key] = KeyedLock()

    def submit(self, request: InferRequest, seconds: float | None = None, arrived: int | None = None) -> Answer:
        sequence = request.options.sequence
        if sequence is None:
            return super().submit(request, seconds, arrived)
        key = Key(request.model, sequence)
        peer = self._peers.find_owner(next(session_ids(key)))
        if peer is None:
            return super().submit(request, seconds, arrived)
        return _PeerReply(asyncio.create_task(self._pass_on(key, peer, request, self._deadline(request, seconds))))

    async def _pass_on(
        self, key: Key, peer: Peer, request: InferRequest, deadline: float
    ) -> service_pb2.ModelInferResponse:
        async with self._locks.of(key):
            reply: service_pb2.ModelInferResponse = await peer.call(
                peer.oip.ModelInfer, encode_request(request), deadline, holds="sequence"
            )
            return reply

    async def model_statistics(self, name: str = "", version: str = "") -> Json:
        """The counts of all workers together; one that is away has none."""
        own = await super().model_statistics(name, version)
        request = service_pb2.ModelStatisticsRequest(name=name, version=version)

        async def ask(peer: Peer) -> list[Json]:
            try:
                deadline = self.clock.monotonic() + _STATISTICS_SECONDS
                return decode_statistics(await peer.call(peer.oip.ModelStatistics, request, deadline))
            except TidegateError:
                return []

        return {"model_stats": summed([own["model_stats"], *await asyncio.gather(*map(ask, self._peers))])}


class _PeerReply:
    """The reply that a peer is due."""

    def __init__(self, task: asyncio.Task[service_pb2.ModelInferResponse]) -> None:
        self.awaited = task

    async def reply(self, encode: Callable[[InferReply], Encoded | Slices[Encoded]]) -> Encoded:
        encoded = encode(decode_reply(await self.awaited))
        if isinstance(encoded, GeneratorType):
            return await in_slices(encoded)
        return encoded  # type: ignore[return-value] # no reply is a generator

    def cancel(self) -> None:
        abandon(self.awaited)
