"""The gRPC services over a core, on h2corn and a real socket of the running event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grpc import GenericRpcHandler

from tidegate.api import Core
from tidegate.observability.requests import RequestMetrics
from tidegate.transports.grpc.services import GrpcServices
from tidegate.transports.h2corn_server import H2cornServer, Limits
from tidegate.transports.listeners import listen

if TYPE_CHECKING:
    from tidegate.transports.oip.inference import Inference


GRACE = 1
"""Seconds. Now and then h2corn misses the end of a connection, and ends only when its grace is over."""


class GrpcServer:
    """Has its port at once, and answers from `start` on."""

    def __init__(
        self,
        service: Core,
        address: str = "127.0.0.1:0",
        inference: Inference | None = None,
        requests: RequestMetrics | None = None,
        more: Sequence[GenericRpcHandler[Any, Any]] = (),
    ) -> None:
        self._services = GrpcServices(service, inference, requests, more)
        self._adapter = self._services.over_asgi()
        self._listener = listen("grpc", address)
        self._server = H2cornServer(
            self._adapter, self._listener, Limits(), grace=GRACE, is_endless=self._adapter.is_probe
        )

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    async def start(self) -> None:
        await self.tell_health()
        await self._server.start()

    async def tell_health(self) -> None:
        await self._services.tell_health()

    async def drain(self) -> None:
        await self._services.drain()
        await self._adapter.wait_idle()

    async def stop(self, grace: float = 0) -> None:
        await self._server.stop(grace)
        self._listener.close()
