"""`inference.GRPCInferenceService`: converts and hands over. Calls are counted and ended as those of `tidegate.v1` are.

Shared memory, traces and settings of the log are not served: those calls end with UNIMPLEMENTED.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from tidegate.errors import NotSupportedError
from tidegate.observability.requests import RequestMetrics as Counted
from tidegate.oip import service_pb2, service_pb2_grpc
from tidegate.transports.grpc.calls import Context, add_service, answered, answered_as, client_seconds, uncounted
from tidegate.transports.oip import documents
from tidegate.transports.oip.fast_wire import Requests, write_reply
from tidegate.transports.oip.inference import Inference
from tidegate.transports.oip.stream import infer_queue
from tidegate.transports.reply_queue import OpenStreams

NAME = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


def _unsupported(what: str) -> Any:
    async def call(self: InferenceService, request: Any, context: Context) -> Any:
        raise NotSupportedError(f"{what} not supported by this server")

    return answered_as("unknown")(call)


def add_to_server(service: InferenceService, server: Any) -> None:
    """Let the server answer; the messages of inference are read and written as bytes, see ``fast_wire.py``."""
    others = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(service.ModelInfer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(service.ModelStreamInfer),
    }
    add_service(service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, service, server, others)


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Knows the streams that are open."""

    interface = "oip_grpc"

    def __init__(self, inference: Inference, requests: Counted) -> None:
        self.requests = requests
        self._inference = inference
        self._reader = Requests()
        self._streams = OpenStreams()

    @uncounted
    async def ServerLive(
        self, request: service_pb2.ServerLiveRequest, context: Context
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    @uncounted
    async def ServerReady(
        self, request: service_pb2.ServerReadyRequest, context: Context
    ) -> service_pb2.ServerReadyResponse:
        return service_pb2.ServerReadyResponse(ready=self._inference.is_ready)

    @uncounted
    async def ModelReady(
        self, request: service_pb2.ModelReadyRequest, context: Context
    ) -> service_pb2.ModelReadyResponse:
        ready = self._inference.is_model_ready(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=ready)

    @answered
    async def ServerMetadata(
        self, request: service_pb2.ServerMetadataRequest, context: Context
    ) -> service_pb2.ServerMetadataResponse:
        return ParseDict(documents.server_metadata(), service_pb2.ServerMetadataResponse())

    @answered
    async def ModelMetadata(
        self, request: service_pb2.ModelMetadataRequest, context: Context
    ) -> service_pb2.ModelMetadataResponse:
        document = self._inference.metadata(request.name, request.version)
        return ParseDict(document, service_pb2.ModelMetadataResponse())

    @answered
    async def ModelConfig(
        self, request: service_pb2.ModelConfigRequest, context: Context
    ) -> service_pb2.ModelConfigResponse:
        document = self._inference.config(request.name, request.version)
        return ParseDict({"config": document}, service_pb2.ModelConfigResponse())

    @answered
    async def ModelStatistics(
        self, request: service_pb2.ModelStatisticsRequest, context: Context
    ) -> service_pb2.ModelStatisticsResponse:
        document = await self._inference.model_statistics(request.name, request.version)
        return ParseDict(document, service_pb2.ModelStatisticsResponse())

    @answered
    async def RepositoryIndex(
        self, request: service_pb2.RepositoryIndexRequest, context: Context
    ) -> service_pb2.RepositoryIndexResponse:
        document = {"models": self._inference.repository.index(ready_only=request.ready)}
        return ParseDict(document, service_pb2.RepositoryIndexResponse())

    @answered
    async def RepositoryModelLoad(
        self, request: service_pb2.RepositoryModelLoadRequest, context: Context
    ) -> service_pb2.RepositoryModelLoadResponse:
        await self._inference.repository.load(request.model_name, list(request.parameters))
        return service_pb2.RepositoryModelLoadResponse()

    @answered
    async def RepositoryModelUnload(
        self, request: service_pb2.RepositoryModelUnloadRequest, context: Context
    ) -> service_pb2.RepositoryModelUnloadResponse:
        await self._inference.repository.unload(request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()

    @answered
    async def ModelInfer(self, request: bytes, context: Context) -> bytes:  # type: ignore[override]
        arrived = self._inference.clock.nanoseconds()
        asked, seen = self._reader.read(request)
        reply = await self._inference.submit(asked, client_seconds(context), arrived).reply(write_reply)
        if seen is not None:
            self._reader.remember(seen)
        return reply

    # A coroutine that writes its replies itself: see Predictor.Generate.
    @uncounted
    async def ModelStreamInfer(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]
        queue = infer_queue(self._inference, self._reader, context, self.requests)
        with self._streams.holding(queue):
            await queue.run()

    SystemSharedMemoryStatus = _unsupported("shared memory is")
    SystemSharedMemoryRegister = _unsupported("shared memory is")
    SystemSharedMemoryUnregister = _unsupported("shared memory is")
    CudaSharedMemoryStatus = _unsupported("shared memory is")
    CudaSharedMemoryRegister = _unsupported("shared memory is")
    CudaSharedMemoryUnregister = _unsupported("shared memory is")
    TraceSetting = _unsupported("settings of traces are")
    LogSettings = _unsupported("settings of the log are")

    def drain(self) -> None:
        """Let every open stream answer what it has read, then end; one that is opened from now on ends at once."""
        self._streams.drain()
