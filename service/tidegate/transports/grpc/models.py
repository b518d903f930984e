"""`tidegate.v1.Models`: what is loaded, and reading the bundle directory again."""

from __future__ import annotations

from tidegate.api import Core
from tidegate.observability.requests import RequestMetrics
from tidegate.transports.grpc.calls import Context, answered_as
from tidegate.v1 import models_pb2, models_pb2_grpc
from tidegate.wire.models import encode_model, encode_model_page, encode_reload


class Models(models_pb2_grpc.ModelsServicer):
    """Converts and hands over to the core."""

    interface = "grpc"

    def __init__(self, service: Core, requests: RequestMetrics) -> None:
        self.requests = requests
        self._service = service

    @answered_as("ListModels")
    async def List(self, request: models_pb2.ListModelsRequest, context: Context) -> models_pb2.ListModelsReply:
        return encode_model_page(self._service.models(request.limit, request.page_token))

    @answered_as("GetModel")
    async def Get(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.Model:
        return encode_model(self._service.model(request.model, request.version or None))

    @answered_as("ReloadModels")
    async def Reload(self, request: models_pb2.ReloadRequest, context: Context) -> models_pb2.ReloadReply:
        return encode_reload(await self._service.reload())
