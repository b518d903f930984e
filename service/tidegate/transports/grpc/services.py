"""Our gRPC services, `grpc.health.v1` and reflection, for whatever runs grpcio-style servicers; and their drain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grpc import GenericRpcHandler
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tidegate.api import Core
from tidegate.errors import TidegateError
from tidegate.observability.requests import RequestMetrics, outcome_of
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.grpc.handlers import add_service
from tidegate.transports.grpc.models import Models
from tidegate.transports.grpc.predictor import Predictor
from tidegate.transports.grpc.sessions import Sessions
from tidegate.transports.oip.grpc import NAME as INFERENCE
from tidegate.transports.oip.grpc import InferenceService, add_to_server
from tidegate.v1 import models_pb2, models_pb2_grpc, predictor_pb2, predictor_pb2_grpc, sessions_pb2, sessions_pb2_grpc

if TYPE_CHECKING:
    from tidegate.transports.oip.inference import Inference

SERVICES = tuple(
    descriptor.full_name
    for module in (models_pb2, predictor_pb2, sessions_pb2)
    for descriptor in module.DESCRIPTOR.services_by_name.values()
)


class GrpcServices:
    """The services over one core.

    Args:
        service: The core's face.
        inference: That of the Open Inference Protocol; None: it is not served.
        requests: Where requests are counted; None: they are nobody's to know.
        more: Answers beside our services.
    """

    def __init__(
        self,
        service: Core,
        inference: Inference | None = None,
        requests: RequestMetrics | None = None,
        more: Sequence[GenericRpcHandler[Any, Any]] = (),
    ) -> None:
        self._service = service
        self._requests = requests or RequestMetrics(service.clock)
        self._models, self._sessions = Models(service, self._requests), Sessions(service, self._requests)
        self._predictor = Predictor(service, self._requests)
        self._inference = None if inference is None else InferenceService(inference, self._requests)
        self._names = SERVICES if inference is None else (*SERVICES, INFERENCE)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._more = tuple(more)

    def add_to(self, server: Any) -> None:
        """Let a server of grpc.aio, or an adapter, answer."""
        add_service(models_pb2_grpc.add_ModelsServicer_to_server, self._models, server)
        add_service(predictor_pb2_grpc.add_PredictorServicer_to_server, self._predictor, server)
        add_service(sessions_pb2_grpc.add_SessionsServicer_to_server, self._sessions, server)
        if self._inference is not None:
            add_to_server(self._inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        describing = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(describing, server)
        server.add_generic_rpc_handlers(self._more)

    def over_asgi(self) -> GrpcAdapter:
        """Return an application that answers for the services."""
        settings = self._service.settings
        adapter = GrpcAdapter(
            max_message=int(settings.max_message_mb * 2**20),
            max_metadata=settings.max_head_kb << 10,
            on_refused=self._count_refused,
            clock=self._service.clock,
        )
        self.add_to(adapter)
        return adapter

    async def tell_health(self) -> None:
        """Bring grpc.health.v1 in step with the core's readiness: at the start, and when that has changed."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        now = status.SERVING if self._service.is_ready else status.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, now)

    async def drain(self) -> None:
        """Say NOT_SERVING at once, and let streams answer what is in flight and end; new calls the core refuses."""
        await self._health.enter_graceful_shutdown()
        self._predictor.drain()
        if self._inference is not None:
            self._inference.drain()

    def _count_refused(self, path: str, error: TidegateError) -> None:
        """Count a call that was refused before its servicer was asked; its path is empty where there is none such."""
        name, _, method = path[1:].partition("/")
        if name not in self._names:
            method = "unknown"
        interface = "oip_grpc" if name == INFERENCE else "grpc"
        self._requests.method(interface, method).end(self._requests.begin(), outcome_of(error))
