"""`tidegate.v1.Sessions`: opening, stepping, branching and closing running sequences, one call each."""

from __future__ import annotations

from tidegate.api import Core
from tidegate.observability.requests import RequestMetrics
from tidegate.transports.grpc.calls import Context, answered, deadline_of, fill_reply, session_of, write_events
from tidegate.v1 import sessions_pb2, sessions_pb2_grpc
from tidegate.wire.inputs import decode_input, decode_options, decode_prompt, decode_sampling
from tidegate.wire.sessions import (
    decode_fork_request,
    decode_restore_request,
    decode_session_request,
    encode_checkpoint,
    encode_forks,
    encode_session,
    encode_session_page,
)


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
