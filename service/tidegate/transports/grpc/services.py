"""Our gRPC services: the servicers, which convert and hand over to the core; health, reflection and their drain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from grpc import GenericRpcHandler
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tidegate.api import Core, Input, check_sequences
from tidegate.errors import InvalidInputError, TidegateError
from tidegate.observability.requests import RequestMetrics, outcome_of
from tidegate.slices import in_slices
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.grpc.calls import (
    Context,
    add_service,
    answered,
    answered_as,
    deadline_of,
    fill_reply,
    session_of,
    uncounted,
    write_events,
)
from tidegate.transports.grpc.stream import step_queue
from tidegate.transports.oip.grpc import NAME as INFERENCE
from tidegate.transports.oip.grpc import InferenceService, add_to_server
from tidegate.transports.reply_queue import OpenStreams
from tidegate.v1 import (
    models_pb2,
    models_pb2_grpc,
    predictor_pb2,
    predictor_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    types_pb2,
)
from tidegate.wire.inputs import decode_input, decode_options, decode_prompt, decode_sampling
from tidegate.wire.models import encode_model, encode_model_page, encode_reload
from tidegate.wire.predictions import encoding_predict
from tidegate.wire.sessions import (
    decode_fork_request,
    decode_restore_request,
    decode_session_request,
    encode_checkpoint,
    encode_forks,
    encode_session,
    encode_session_page,
)

if TYPE_CHECKING:
    from tidegate.transports.oip.inference import Inference


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


class Predictor(predictor_pb2_grpc.PredictorServicer):
    """Converts and hands over to the core; knows the streams that are open."""

    interface = "grpc"

    def __init__(self, service: Core, requests: RequestMetrics) -> None:
        self.requests = requests
        self._service = service
        self._streams = OpenStreams()

    @answered
    async def Predict(self, request: predictor_pb2.PredictRequest, context: Context) -> predictor_pb2.PredictReply:
        deadline = deadline_of(context, self._service)
        check_sequences(len(request.sequences))
        sequences, options = decode_sequences(request.sequences), decode_options(request)
        result = await self._service.predict(request.model, request.version or None, sequences, options, deadline)
        return await in_slices(encoding_predict(result))

    # grpc.aio also takes a coroutine that writes its replies itself, which the generated types do not know. Unlike a
    # generator it sees the cancellation while a reply is being sent.
    @answered
    async def Generate(self, request: predictor_pb2.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        deadline = deadline_of(context, self._service)
        prompt, sampling = decode_prompt(request), decode_sampling(request)
        version = request.version or None
        await write_events(self._service.generate(request.model, version, prompt, sampling, deadline), context)

    @uncounted
    async def Stream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[predictor_pb2.StreamRequest], context: Context
    ) -> None:
        queue = step_queue(self._service, context, self.requests)
        with self._streams.holding(queue):
            await queue.run()

    def drain(self) -> None:
        """Let every open stream answer what it has read, then end; one that is opened from now on ends at once."""
        self._streams.drain()


def decode_sequences(messages: Iterable[types_pb2.Input]) -> list[Input]:
    """The sequences of a call; an error names the sequence by its index."""
    sequences = []
    for index, message in enumerate(messages):
        try:
            sequences.append(decode_input(message))
        except InvalidInputError as error:
            text, details = f"sequence {index}: {error.message}", {"sequence": str(index)}
            raise InvalidInputError(text, reason=error.reason, details=details) from error
    return sequences


class Sessions(sessions_pb2_grpc.SessionsServicer):
    """Converts and hands over to the core."""

    interface = "grpc"

    def __init__(self, service: Core, requests: RequestMetrics) -> None:
        self.requests = requests
        self._service = service

    @answered
    async def Open(self, request: sessions_pb2.OpenRequest, context: Context) -> sessions_pb2.Session:
        return encode_session(await self._service.open_session(decode_session_request(request)))

    @answered
    async def Get(self, request: sessions_pb2.GetSessionRequest, context: Context) -> sessions_pb2.Session:
        return encode_session(await self._service.get_session(session_of(request.session, context)))

    @answered
    async def List(self, request: sessions_pb2.ListSessionsRequest, context: Context) -> sessions_pb2.ListSessionsReply:
        return encode_session_page(await self._service.list_sessions(request.limit, request.page_token))

    @answered
    async def Close(self, request: sessions_pb2.CloseRequest, context: Context) -> sessions_pb2.CloseReply:
        await self._service.close_session(session_of(request.session, context))
        return sessions_pb2.CloseReply()

    @answered
    async def Step(self, request: sessions_pb2.StepRequest, context: Context) -> sessions_pb2.StepReply:
        session, deadline = session_of(request.session, context), deadline_of(context, self._service)
        position = request.position if request.HasField("position") else None
        reply = sessions_pb2.StepReply()
        asked, options = decode_input(request), decode_options(request)
        await fill_reply(reply, await self._service.step(session, asked, options, position, deadline))
        return reply

    # A coroutine that writes its replies itself: see Predictor.Generate.
    @answered
    async def Generate(  # type: ignore[override]
        self, request: sessions_pb2.SessionGenerateRequest, context: Context
    ) -> None:
        session, deadline = session_of(request.session, context), deadline_of(context, self._service)
        prompt, sampling = decode_prompt(request), decode_sampling(request)
        position = request.position if request.HasField("position") else None
        events = self._service.generate_on_session(session, prompt, sampling, position, deadline)
        await write_events(events, context)

    @answered
    async def Fork(self, request: sessions_pb2.ForkRequest, context: Context) -> sessions_pb2.ForkReply:
        session, (ids, count) = session_of(request.session, context), decode_fork_request(request)
        return encode_forks(await self._service.fork_session(session, ids, count))

    @answered
    async def Checkpoint(
        self, request: sessions_pb2.CheckpointRequest, context: Context
    ) -> sessions_pb2.CheckpointReply:
        session = session_of(request.session, context)
        return encode_checkpoint(await self._service.checkpoint_session(session, request.name or None))

    @answered
    async def Rewind(self, request: sessions_pb2.RewindRequest, context: Context) -> sessions_pb2.Session:
        session = session_of(request.session, context)
        return encode_session(await self._service.rewind_session(session, request.checkpoint))

    @answered
    async def Upgrade(self, request: sessions_pb2.UpgradeRequest, context: Context) -> sessions_pb2.Session:
        session = session_of(request.session, context)
        return encode_session(await self._service.upgrade_session(session, request.version or None))

    @answered
    async def Snapshot(self, request: sessions_pb2.SnapshotRequest, context: Context) -> sessions_pb2.SnapshotReply:
        session = session_of(request.session, context)
        return sessions_pb2.SnapshotReply(snapshot=await self._service.snapshot_session(session))

    @answered
    async def Restore(self, request: sessions_pb2.RestoreRequest, context: Context) -> sessions_pb2.Session:
        return encode_session(await self._service.restore_session(*decode_restore_request(request)))


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
