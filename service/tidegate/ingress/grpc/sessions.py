"""`tidegate.v1.Sessions`: opening, stepping and closing running sequences, one call each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.ingress.grpc.calls import Calls, Context, answered, deadline_of, session_of, write_events
from tidegate.v1 import sessions_pb2, sessions_pb2_grpc
from tidegate.wire.inputs import decode_ask, decode_input, decode_prompt, decode_sampling
from tidegate.wire.predictions import fill_step
from tidegate.wire.sessions import decode_session_request, encode_session, encode_session_page

if TYPE_CHECKING:
    from tidegate.service import Service


class Sessions(sessions_pb2_grpc.SessionsServicer):
    """Converts and hands over to the core."""

    def __init__(self, service: Service, calls: Calls) -> None:
        self.calls = calls
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
        session, deadline = session_of(request.session, context), deadline_of(context, self._timeout)
        position = request.position if request.HasField("position") else None
        reply = sessions_pb2.StepReply()
        fill_step(
            reply,
            await self._service.step(session, decode_input(request), decode_ask(request), position, deadline),
        )
        return reply

    # A coroutine that writes its replies itself: see Predictor.Generate.
    @answered
    async def Generate(  # type: ignore[override]
        self, request: sessions_pb2.SessionGenerateRequest, context: Context
    ) -> None:
        session, deadline = session_of(request.session, context), deadline_of(context, self._timeout)
        prompt, sampling = decode_prompt(request), decode_sampling(request)
        position = request.position if request.HasField("position") else None
        events = self._service.generate_on_session(session, prompt, sampling, position, deadline)
        await write_events(events, context)

    @property
    def _timeout(self) -> float:
        return self._service.settings.request_timeout
