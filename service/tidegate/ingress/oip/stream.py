"""`ModelStreamInfer`: requests of any sequences, or of none, answered in the order they came.

A request that fails is answered with ``error_message``, its id and, for programs, the reason as a parameter; the
stream goes on.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tidegate.ingress.grpc.calls import Context, client_seconds, conceal
from tidegate.ingress.grpc.line import Pending
from tidegate.ingress.grpc.ordered import OrderedStream
from tidegate.ingress.oip.answer import Answer
from tidegate.ingress.oip.inference import Inference
from tidegate.ingress.oip.messages import decode_request, encode_reply
from tidegate.observe.requests import OK, Requests, outcome_of
from tidegate.oip import service_pb2

MAX_IN_FLIGHT = 256
"""More than on a stream of `tidegate.v1`, whose messages carry many sessions: here each carries one sequence's step."""


METHOD = "ModelInfer"


class _Failed:
    """A request that was refused at once."""

    awaited = None
    method = METHOD
    session = ""

    def __init__(self, reply: service_pb2.ModelStreamInferResponse, outcome: str) -> None:
        self._reply = reply
        self.outcome = outcome

    async def reply(self) -> service_pb2.ModelStreamInferResponse:
        return self._reply

    def cancel(self) -> None:
        """Nothing runs."""


class _Due:
    """A request that the engine has."""

    method = METHOD
    session = ""
    outcome = OK

    def __init__(self, request: service_pb2.ModelInferRequest, answer: Answer) -> None:
        self._request = request
        self._answer = answer
        self.awaited: asyncio.Future[Any] = answer.awaited

    async def reply(self) -> service_pb2.ModelStreamInferResponse:
        try:
            return service_pb2.ModelStreamInferResponse(infer_response=await self._answer.reply(encode_reply))
        except Exception as error:  # noqa: BLE001 - it is this request's answer
            self.outcome = outcome_of(error)
            return refusal(self._request, error)

    def cancel(self) -> None:
        self._answer.cancel()


class InferStream:
    """One client's stream."""

    def __init__(self, inference: Inference, context: Context, requests: Requests) -> None:
        self._inference = inference
        self._stream = OrderedStream(context, self._submit, MAX_IN_FLIGHT, (requests, "oip_grpc_stream"))
        self._loop = asyncio.get_running_loop()
        seconds = client_seconds(context)
        self._ends_at = None if seconds is None else self._loop.time() + seconds

    async def run(self) -> None:
        """Answer until the stream ends; see `OrderedStream`."""
        await self._stream.run()

    def drain(self) -> None:
        """Read no further message. One that was read is answered, whatever stage it is in."""
        self._stream.drain()

    async def _submit(self, message: service_pb2.ModelInferRequest) -> Pending:
        arrived = time.perf_counter_ns()
        seconds = None if self._ends_at is None else self._ends_at - self._loop.time()
        try:
            return _Due(message, self._inference.submit(decode_request(message), seconds, arrived))
        except Exception as error:  # noqa: BLE001 - it is this request's answer
            return _Failed(refusal(message, error), outcome_of(error))


def refusal(request: service_pb2.ModelInferRequest, error: Exception) -> service_pb2.ModelStreamInferResponse:
    """The reply to a request that failed."""
    told = conceal(error)
    reply = service_pb2.ModelStreamInferResponse(error_message=told.message)
    response = reply.infer_response
    response.model_name, response.model_version, response.id = request.model_name, request.model_version, request.id
    response.parameters["tidegate_reason"].string_param = told.reason
    return reply
