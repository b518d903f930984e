"""`ModelStreamInfer`: requests of any sequences, or of none, answered in the order they came.

A request that fails is answered with ``error_message``, its id and, for programs, the reason as a parameter; the
stream goes on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tidegate.errors import InvalidInputError
from tidegate.faults import conceal
from tidegate.limits import MAX_INFERENCES_IN_FLIGHT
from tidegate.observability import requests as counting
from tidegate.observability.requests import OK, outcome_of
from tidegate.oip import service_pb2
from tidegate.transports.grpc.calls import Context, client_seconds, queue_of
from tidegate.transports.oip.fast_wire import Requests, Seen, parse, write_stream_reply
from tidegate.transports.oip.inference import Answer, Inference
from tidegate.transports.reply_queue import Pending, ReadyReply, ReplyQueue

METHOD = "ModelInfer"


class _Due:
    """A request that the engine has."""

    __slots__ = ("_answer", "_request", "_requests", "_seen", "awaited", "outcome")

    method = METHOD
    session = ""

    def __init__(self, request: bytes, answer: Answer, requests: Requests, seen: Seen | None) -> None:
        self._request = request
        self._answer = answer
        self._requests = requests
        self._seen = seen
        self.awaited: asyncio.Future[Any] = answer.awaited
        self.outcome = OK

    async def reply(self) -> bytes:
        try:
            reply = await self._answer.reply(write_stream_reply)
        except Exception as error:  # noqa: BLE001 - it is this request's answer
            self.outcome = outcome_of(error)
            return refusal(self._request, error)
        if self._seen is not None:
            self._requests.remember(self._seen)
        return reply

    def cancel(self) -> None:
        self._answer.cancel()


def infer_queue(
    inference: Inference, requests: Requests, context: Context, counted: counting.RequestMetrics
) -> ReplyQueue:
    """Return a client's stream, for its call to run."""
    messages = InferMessages(inference, requests, client_seconds(context))
    return queue_of(context, messages.submit, MAX_INFERENCES_IN_FLIGHT, counted, "oip_grpc_stream")


class InferMessages:
    """The requests of a stream, which has so many seconds, or no end where that is None."""

    def __init__(self, inference: Inference, requests: Requests, seconds: float | None) -> None:
        self._inference = inference
        self._requests = requests
        self._now = inference.clock.monotonic
        self._ends_at = None if seconds is None else self._now() + seconds

    async def submit(self, message: bytes) -> Pending:
        """Hand a request over. What is wrong with it is its reply."""
        arrived = self._inference.clock.nanoseconds()
        seconds = None if self._ends_at is None else self._ends_at - self._now()
        try:
            asked, seen = self._requests.read(message)
            return _Due(message, self._inference.submit(asked, seconds, arrived), self._requests, seen)
        except Exception as error:  # noqa: BLE001 - it is this request's answer
            return ReadyReply(METHOD, refusal(message, error), outcome_of(error))


def refusal(request: bytes, error: Exception) -> bytes:
    """The reply to a request that failed."""
    told, asked = conceal(error), _parsed(request)
    reply = service_pb2.ModelStreamInferResponse(error_message=told.message)
    response = reply.infer_response
    response.model_name, response.model_version, response.id = asked.model_name, asked.model_version, asked.id
    response.parameters["tidegate_reason"].string_param = told.reason
    return reply.SerializeToString()


def _parsed(request: bytes) -> service_pb2.ModelInferRequest:
    """The request, an empty one where it is no message."""
    try:
        return parse(request)
    except InvalidInputError:
        return service_pb2.ModelInferRequest()
