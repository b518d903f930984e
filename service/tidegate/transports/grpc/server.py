"""The gRPC server: our services, `grpc.health.v1` and reflection; start, drain, stop.

They are on one port of grpcio and, where asked for, on a second one of the native front: pygrpc-native, which does
HTTP/2 in Rust outside the interpreter lock. That front answers unary and server-streaming calls itself and hands the
others, `Predictor.Stream` and reflection, to a grpcio server of its own behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from grpc import GenericRpcHandler, aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tidegate.config import flag
from tidegate.errors import ConfigurationError
from tidegate.observe.requests import Requests
from tidegate.sockets import listen
from tidegate.transports.grpc.calls import Calls
from tidegate.transports.grpc.handlers import add_service
from tidegate.transports.grpc.models import Models
from tidegate.transports.grpc.predictor import Predictor
from tidegate.transports.grpc.sessions import Sessions
from tidegate.transports.oip.grpc import NAME as INFERENCE
from tidegate.transports.oip.grpc import InferenceService, add_to_server
from tidegate.v1 import models_pb2, models_pb2_grpc, predictor_pb2, predictor_pb2_grpc, sessions_pb2, sessions_pb2_grpc

if TYPE_CHECKING:
    from tidegate.config import Settings
    from tidegate.service import Service
    from tidegate.transports.oip.inference import Inference

SERVICES = tuple(
    descriptor.full_name
    for module in (models_pb2, predictor_pb2, sessions_pb2)
    for descriptor in module.DESCRIPTOR.services_by_name.values()
)


class Bound(NamedTuple):
    """A server that has its port and does not answer yet."""

    server: aio.Server
    port: int


class GrpcServer:
    """Bound servers over one core: grpcio's and, where asked for, the native front's.

    ``port`` and ``native_port`` are those they listen on, also where port 0 was asked for.
    """

    def __init__(
        self,
        service: Service,
        grpcio: Bound,
        native: Bound | None,
        inference: Inference | None,
        requests: Requests | None,
        more: Sequence[GenericRpcHandler[Any, Any]],
    ) -> None:
        self.port = grpcio.port
        self.native_port = None if native is None else native.port
        self._service = service
        self._servers = [bound.server for bound in (grpcio, native) if bound is not None]
        self._calls = Calls(requests or Requests(service.clock))
        self._predictor = Predictor(service, self._calls)
        self._inference = None if inference is None else InferenceService(inference, self._calls)
        self._names = SERVICES if inference is None else (*SERVICES, INFERENCE)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        for server in self._servers:
            add_service(models_pb2_grpc.add_ModelsServicer_to_server, Models(service, self._calls), server)
            add_service(predictor_pb2_grpc.add_PredictorServicer_to_server, self._predictor, server)
            add_service(sessions_pb2_grpc.add_SessionsServicer_to_server, Sessions(service, self._calls), server)
            if self._inference is not None:
                add_to_server(self._inference, server)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            server.add_generic_rpc_handlers(tuple(more))
            reflection.enable_server_reflection((*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    async def start(self) -> None:
        """Begin to answer."""
        await self.tell_health()
        for server in self._servers:
            await server.start()

    async def tell_health(self) -> None:
        """Bring grpc.health.v1 in step with the core's readiness: at the start, and when that has changed."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        now = status.SERVING if self._service.is_ready else status.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, now)

    async def drain(self) -> None:
        """Say NOT_SERVING at once, let streams answer what is in flight and end, and return when no call runs.

        New calls are the core's to refuse. Whoever calls this bounds it, then calls `stop`.
        """
        await self._health.enter_graceful_shutdown()
        self._predictor.drain()
        if self._inference is not None:
            self._inference.drain()
        await self._calls.wait_idle()

    async def stop(self, grace: float | None = None) -> None:
        """Close the ports; calls that still run are cancelled after ``grace`` seconds, with None at once."""
        await asyncio.gather(*(server.stop(grace) for server in self._servers))


def create_server(
    service: Service,
    address: str,
    native_address: str | None = None,
    inference: Inference | None = None,
    requests: Requests | None = None,
    more: Sequence[GenericRpcHandler[Any, Any]] = (),
) -> GrpcServer:
    """Bind ``HOST:PORT`` and, where given, that of the native front, in the running event loop.

    Requests are counted in ``requests``; None: they are nobody's to know. ``more`` answers beside our services.

    Raises:
        ConfigurationError: An address cannot be bound, or the native front is not installed.
    """
    options, is_shared = server_options(service.settings), service.settings.workers > 1
    native = None
    if native_address is not None:
        native = bind("native_grpc", _native_server(options), native_address, is_shared=is_shared)
    grpcio = bind("grpc", aio.server(options=options), address, is_shared=is_shared)
    return GrpcServer(service, grpcio, native, inference, requests, more)


def bind(name: str, server: aio.Server, address: str, *, is_shared: bool = False) -> Bound:
    """Give a server its port, the setting ``name``, which others may listen on too where it ``is_shared``.

    Raises:
        ConfigurationError: The address cannot be bound.
    """
    if not address.startswith("unix"):
        # gRPC does not say why it cannot: so it is tried without gRPC.
        listen(name, address, is_shared=is_shared).close()
    try:
        return Bound(server, server.add_insecure_port(address))
    except RuntimeError as error:
        raise ConfigurationError(f"{flag(name)}: cannot listen on {address}") from error


def _native_server(options: list[tuple[str, int]]) -> aio.Server:
    try:
        from pygrpc_native.aio import server
    except ImportError:
        message = "--native-grpc needs the native front: pip install 'tidegate[front]'"
        raise ConfigurationError(message, reason="NO_NATIVE_FRONT") from None
    return server(options=options)


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Options of gRPC's core (grpc/impl/channel_arg_names.h); an oversized message ends its call."""
    limit = int(settings.max_message_mb * 1024 * 1024)
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # With SO_REUSEPORT, gRPC's default, a second server on the port would take half of the calls unnoticed.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        # Find out within a minute that a client's machine is gone, and let idle clients do the same.
        ("grpc.keepalive_time_ms", 40_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
