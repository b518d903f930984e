"""Inference on a worker: a sequence that lives on a fellow is served by passing its requests on.

Every worker knows whose a sequence is by the id of its first session (`workers.seat`). What belongs to no sequence is
served where it arrives. The owner is asked by the protocol's own gRPC over its Unix socket; the outcome, an error too,
is the same as if it had been asked itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc import aio

from tidegate.api import Core
from tidegate.errors import UnavailableError
from tidegate.oip import service_pb2, service_pb2_grpc
from tidegate.slices import Slices, in_slices
from tidegate.transports.oip.answer import Answer
from tidegate.transports.oip.inference import Inference
from tidegate.transports.oip.messages import decode_reply, decode_statistics, encode_request
from tidegate.transports.oip.requests import InferReply, InferRequest
from tidegate.transports.oip.sequences.ids import Key, session_ids
from tidegate.transports.oip.sequences.turns import Turns
from tidegate.transports.oip.statistics import summed
from tidegate.transports.reply_queue import abandon
from tidegate.wire.errors import decode_status

if TYPE_CHECKING:
    from tidegate.cluster.seat import Seat

Json = dict[str, Any]
Encoded = TypeVar("Encoded")
_STATISTICS_SECONDS = 1.0
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A fellow that was away for long is found as soon as one that was not; gRPC's own pause grows to two minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class RoutedInference(Inference):
    """What the world asks of a worker; its fellows ask ``local``, which serves what it is asked."""

    def __init__(self, core: Core, local: Inference, seat: Seat) -> None:
        super().__init__(core)
        self.sequences, self.statistics = local.sequences, local.statistics
        self.models = local.models  # a sequence that began there goes on here
        self._seat = seat
        self._channels = {each: aio.insecure_channel(seat.target(each), options=_OPTIONS) for each in seat.others}
        # Calls may overtake each other, those of a sequence may not.
        self._turns: Turns[Key] = Turns()

    async def stop(self) -> None:
        await super().stop()
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))

    def submit(self, request: InferRequest, seconds: float | None = None, arrived: int | None = None) -> Answer:
        sequence = request.options.sequence
        if sequence is None:
            return super().submit(request, seconds, arrived)
        key = Key(request.model, sequence)
        channel = self._channels.get(self._seat.owner(next(session_ids(key))))
        if channel is None:
            return super().submit(request, seconds, arrived)
        return _PassedOn(asyncio.create_task(self._pass_on(key, channel, request, self._deadline(request, seconds))))

    async def model_statistics(self, name: str = "", version: str = "") -> Json:
        """The counts of all workers together; one that is away has none."""
        told = await super().model_statistics(name, version)
        asked = await asyncio.gather(*(_statistics(channel, name, version) for channel in self._channels.values()))
        return {"model_stats": summed([told["model_stats"], *asked])}

    async def _pass_on(
        self, key: Key, channel: aio.Channel, request: InferRequest, deadline: float
    ) -> service_pb2.ModelInferResponse:
        async with self._turns.of(key):
            return await _ask(channel, request, deadline - self.clock.monotonic())


class _PassedOn:
    """The reply that a fellow is due."""

    def __init__(self, task: asyncio.Task[service_pb2.ModelInferResponse]) -> None:
        self.awaited = task

    async def reply(self, encode: Callable[[InferReply], Encoded | Slices[Encoded]]) -> Encoded:
        encoded = encode(decode_reply(await self.awaited))
        if isinstance(encoded, GeneratorType):
            return await in_slices(encoded)
        return encoded  # type: ignore[return-value] # no reply is a generator

    def cancel(self) -> None:
        abandon(self.awaited)


async def _statistics(channel: aio.Channel, name: str, version: str) -> list[Json]:
    stub: service_pb2_grpc.GRPCInferenceServiceAsyncStub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        return decode_statistics(
            await stub.ModelStatistics(
                service_pb2.ModelStatisticsRequest(name=name, version=version), timeout=_STATISTICS_SECONDS
            )
        )
    except grpc.RpcError:
        return []


async def _ask(channel: aio.Channel, request: InferRequest, seconds: float) -> service_pb2.ModelInferResponse:
    stub: service_pb2_grpc.GRPCInferenceServiceAsyncStub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        return await stub.ModelInfer(encode_request(request), timeout=seconds)
    except grpc.RpcError as error:
        told = decode_status(error)
        if isinstance(told, UnavailableError) and told.reason == UnavailableError.default_reason:
            message = "the worker that holds the sequence is away: it is being started again"
            raise UnavailableError(message, reason="WORKER_AWAY", retry_after=1.0) from error
        raise told from error
