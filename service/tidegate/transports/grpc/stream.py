"""`Predictor.Stream`: many steps in flight on one call, answered in the order they were asked."""

from __future__ import annotations

import asyncio

from tidegate.api import Core, Input, StepOptions, StepResult
from tidegate.engine.share import Share
from tidegate.errors import InvalidInputError, TidegateError
from tidegate.faults import conceal
from tidegate.limits import MAX_IN_FLIGHT
from tidegate.observability.requests import OK, RequestMetrics, outcome_of
from tidegate.slices import in_slices
from tidegate.transports.grpc.calls import Context, client_seconds, queue_of, session_in_metadata
from tidegate.transports.grpc.columns import Part, PendingColumns, awaited_of, cancel_parts, refusal
from tidegate.transports.grpc.lanes import Group, Lane, Lanes
from tidegate.transports.reply_queue import Pending, Ready, ReplyQueue, abandon, result_of
from tidegate.v1 import predictor_pb2, sessions_pb2
from tidegate.wire.columns import LaneSteps, decode_columns
from tidegate.wire.inputs import decode_input, decode_options
from tidegate.wire.parsing import parsed
from tidegate.wire.predictions import fill_step, filling_step


class PendingStep:
    """Steps of one session."""

    __slots__ = ("awaited", "outcome", "session")

    method = "Step"

    def __init__(self, session: str, future: asyncio.Future[StepResult]) -> None:
        self.session = session
        self.awaited = future
        self.outcome = OK

    async def reply(self) -> predictor_pb2.StreamReply:
        reply = predictor_pb2.StreamReply()
        try:
            result = result_of(self.awaited)
            if result.prediction.is_large:
                await in_slices(filling_step(reply.step, result))
            else:
                fill_step(reply.step, result)
        except Exception as error:  # noqa: BLE001 - it is this message's answer
            self.outcome = outcome_of(error)
            return refusal(error)
        return reply

    def cancel(self) -> None:
        abandon(self.awaited)


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
                return Ready("Attach", predictor_pb2.StreamReply(attached=attached))
            raise InvalidInputError("the message is empty: set one of step, attach and columns")
        except Exception as error:  # noqa: BLE001 - it is this message's answer
            return Ready("unknown" if kind is None else kind.capitalize(), refusal(error), outcome_of(error))

    def _submit_step(self, message: sessions_pb2.StepRequest) -> Pending:
        self.session = message.session or self.session
        if not self.session:
            raise InvalidInputError("no session: the first step of a stream must name one")
        position = message.position if message.HasField("position") else None
        asked, options = decode_input(message), decode_options(message)
        future = self._service.step(self.session, asked, options, position, self._time_limit())
        return PendingStep(self.session, future)

    async def _submit_columns(self, message: predictor_pb2.Columns) -> Pending:
        steps = decode_columns(message)
        lanes, groups = await self._lanes.take(steps.lanes)
        deadline, share = self._time_limit(), Share(self._service.settings.max_queue)
        parts: list[Part] = []
        try:
            for group in groups:
                num_lanes = group.stop - group.start
                await share.room(num_lanes)
                part = self._submit_group(steps, group, lanes[group.start : group.stop], deadline)
                parts.append(part)
                if len(groups) > 1 and (awaited := awaited_of(part)) is not None:
                    share.take(awaited, num_lanes)
        except BaseException:
            cancel_parts(parts)
            raise
        sizes = [stop - start for start, stop, _ in groups]
        return PendingColumns(steps.lanes, parts, sizes, self._requests, self._max_bytes)

    def _submit_group(self, steps: LaneSteps, group: Group, lanes: list[Lane], deadline: float) -> Part:
        """Hand lanes over as one piece of work where they can go together, and else each as its own."""
        start, stop, party = group
        if party is not None and not steps.lengths:
            source, positions = steps.part(start, stop), steps.positions[start:stop]
            together = self._service.step_together(party, source, steps.options, positions, deadline)
            if together is not None:
                return together
        return [
            self._submit_lane(lane, source, steps.options, position, deadline)
            for lane, (source, position) in zip(lanes, steps.each(start, stop), strict=True)
        ]

    def _submit_lane(
        self, lane: Lane, source: Input, options: StepOptions, position: int | None, deadline: float
    ) -> asyncio.Future[StepResult] | TidegateError:
        try:
            return lane.failure or self._service.step(lane.session, source, options, position, deadline)
        except Exception as error:  # noqa: BLE001 - it is this lane's answer
            return conceal(error)

    def _time_limit(self) -> float:
        """The deadline of a message read now."""
        return self._now() + self._seconds if self._ends_at is None else self._ends_at
