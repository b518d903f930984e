"""`Predictor.Stream`: many steps in flight on one call, answered in the order they were asked."""

from __future__ import annotations

from tidegate.api import Core
from tidegate.engine.loop import QueueShare
from tidegate.errors import InvalidInputError
from tidegate.limits import MAX_IN_FLIGHT
from tidegate.observability.requests import OK, RequestMetrics, outcome_of
from tidegate.reply import DirectReply, RowsReply
from tidegate.slices import in_slices
from tidegate.transports.grpc.calls import Context, client_seconds, queue_of, session_in_metadata
from tidegate.transports.grpc.columns import PendingColumns, refusal
from tidegate.transports.grpc.lanes import Lanes
from tidegate.transports.reply_queue import Pending, ReadyReply, ReplyQueue, result_of
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.columns import decode_columns
from tidegate.wire.inputs import decode_input, decode_options
from tidegate.wire.parsing import parsed
from tidegate.wire.predictions import fill_step, filling_step


class PendingStep(DirectReply):
    """Steps of one session: takes their result, and makes the reply."""

    __slots__ = ("outcome", "session")

    method = "Step"

    def __init__(self, session: str) -> None:
        super().__init__()
        self.session = session
        self.outcome = OK

    @property
    def awaited(self) -> DirectReply:
        return self

    async def reply(self) -> predictor_pb2.StreamReply:
        reply = predictor_pb2.StreamReply()
        try:
            result = result_of(self)
            if result.prediction.is_large:
                await in_slices(filling_step(reply.step, result))
            else:
                fill_step(reply.step, result)
        except Exception as error:  # noqa: BLE001 - it is this message's answer
            self.outcome = outcome_of(error)
            return refusal(error)
        return reply


def step_queue(service: Core, context: Context, requests: RequestMetrics) -> ReplyQueue:
    """Return a client's stream, for its call to run."""
    seconds = client_seconds(context)
    ends_at = None if seconds is None else service.clock.monotonic() + seconds
    messages = StepMessages(service, requests, session_in_metadata(context), ends_at=ends_at)
    return queue_of(context, messages.submit, MAX_IN_FLIGHT, requests, "grpc_stream")


class StepMessages:
    """What a stream's messages ask of the core, whatever brings them; the replies are `StreamReply`.

    Args:
        service: The core.
        requests: Where lanes that fail are counted.
        session: That steps are of which name none; empty where there is none yet.
        ends_at: The deadline of all messages by the service's clock; None gives each its own.
        seconds: That each message may take, where ``ends_at`` is None; None: the setting's.
    """

    def __init__(
        self,
        service: Core,
        requests: RequestMetrics,
        session: str,
        *,
        ends_at: float | None = None,
        seconds: float | None = None,
    ) -> None:
        self.session = session
        self._service = service
        self._requests = requests
        self._now = service.clock.monotonic
        self._lanes = Lanes(service)
        self._max_bytes = int(service.settings.max_message_mb * 2**20)
        self._ends_at = ends_at
        self._seconds = service.settings.request_timeout if seconds is None else seconds

    async def submit(self, request: predictor_pb2.StreamRequest) -> Pending:
        """Hand a message over. What is wrong with it is its reply."""
        kind = None
        try:
            kind = parsed(request).WhichOneof("message")
            if kind == "step":
                return self._submit_step(request.step)
            if kind == "columns":
                return await self._submit_columns(request.columns)
            if kind == "attach":
                attached = await self._lanes.attach(request.attach)
                return ReadyReply("Attach", predictor_pb2.StreamReply(attached=attached))
            raise InvalidInputError("the message is empty: set one of step, attach and columns")
        except Exception as error:  # noqa: BLE001 - it is this message's answer
            return ReadyReply("unknown" if kind is None else kind.capitalize(), refusal(error), outcome_of(error))

    def _submit_step(self, message: sessions_pb2.StepRequest) -> Pending:
        self.session = message.session or self.session
        if not self.session:
            raise InvalidInputError("no session: the first step of a stream must name one")
        position = message.position if message.HasField("position") else None
        asked, options = decode_input(message), decode_options(message)
        pending = PendingStep(self.session)
        self._service.submit_step(self.session, asked, options, position, self._time_limit(), pending)
        return pending

    async def _submit_columns(self, message: predictor_pb2.Columns) -> Pending:
        lanes, steps, options = decode_columns(message)
        groups, failures = await self._lanes.take(lanes)
        deadline, share = self._time_limit(), QueueShare(self._service.settings.max_queue)
        reply = RowsReply(len(lanes), share.give_back)
        for row, failure in failures.items():
            share.take()
            reply.put(row, failure)
        try:
            for group, rows in groups:
                await share.wait_for_room(len(rows))
                share.take(len(rows))
                some = steps if len(rows) == len(lanes) else steps.select(rows)
                self._service.submit_columns(group, rows, some, options, deadline, reply)
        except BaseException:
            reply.cancel()
            raise
        return PendingColumns(lanes, reply, self._requests, self._max_bytes)

    def _time_limit(self) -> float:
        """The deadline of a message read now."""
        return self._now() + self._seconds if self._ends_at is None else self._ends_at
