"""`tidegate.v1.Predictor`: stateless calls, and the stream that carries steps of sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from tidegate.api import Core, Input, check_sequences
from tidegate.errors import InvalidInputError
from tidegate.observability.requests import RequestMetrics
from tidegate.slices import in_slices
from tidegate.transports.grpc.calls import Context, answered, deadline_of, uncounted, write_events
from tidegate.transports.grpc.stream import step_queue
from tidegate.transports.reply_queue import OpenStreams
from tidegate.v1 import predictor_pb2, predictor_pb2_grpc, types_pb2
from tidegate.wire.inputs import decode_input, decode_options, decode_prompt, decode_sampling
from tidegate.wire.predictions import encoding_predict


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
