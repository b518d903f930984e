"""`inference.GRPCInferenceService`: converts and hands over. Calls are counted and ended as those of `tidegate.v1` are.

Shared memory, traces and settings of the log are not served: those calls end with UNIMPLEMENTED.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.json_format import ParseDict

from tidegate.errors import NotSupportedError
from tidegate.ingress.grpc.calls import Calls, Context, answered, answered_as, client_seconds, uncounted
from tidegate.ingress.oip import documents
from tidegate.ingress.oip.inference import Inference
from tidegate.ingress.oip.messages import decode_request, encode_reply
from tidegate.ingress.oip.stream import InferStream
from tidegate.oip import service_pb2, service_pb2_grpc


def _unsupported(what: str) -> Any:
    async def call(self: InferenceService, request: Any, context: Context) -> Any:
        raise NotSupportedError(f"{what} not supported by this server")

    return answered_as("unknown")(call)


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Knows the streams that are open."""

    interface = "oip_grpc"

    def __init__(self, inference: Inference, calls: Calls) -> None:
        self.calls = calls
        self._inference = inference
        self._streams: set[InferStream] = set()
        self._is_draining = False

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
        document = self._inference.model_statistics(request.name, request.version)
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
    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: Context
    ) -> service_pb2.ModelInferResponse:
        arrived = time.perf_counter_ns()
        answer = self._inference.submit(decode_request(request), client_seconds(context), arrived)
        return await answer.reply(encode_reply)

    # A coroutine that writes its replies itself: see Predictor.Generate.
    @uncounted
    async def ModelStreamInfer(  # type: ignore[override]
        self, request_iterator: AsyncIterator[service_pb2.ModelInferRequest], context: Context
    ) -> None:
        stream = InferStream(self._inference, context, self.calls.requests)
        if self._is_draining:
            stream.drain()
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

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
        self._is_draining = True
        for stream in self._streams:
            stream.drain()
