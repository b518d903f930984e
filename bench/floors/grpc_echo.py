"""grpc.aio alone: reads each request as protobuf, answers at once with a reply of a step's size. No model, no session.

The same event loop and (de)serializers as the server; unary `Sessions.Step` and `ModelInfer`,
bidirectional `Predictor.Stream` and `ModelStreamInfer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from bench.floors.replies import infer_reply, infer_stream_reply, step_reply, stream_reply
from bench.floors.running import run, say_ready
from bench.raw import bundle_of
from tidegate.bundle import read_bundle
from tidegate.oip import service_pb2
from tidegate.v1 import predictor_pb2, sessions_pb2

if TYPE_CHECKING:
    Context = aio.ServicerContext[Any, Any]

STEP_REPLY = step_reply()
STREAM_REPLY = stream_reply()
MANIFEST = read_bundle(bundle_of()).manifest
INFER_REPLY = infer_reply(MANIFEST)
INFER_STREAM_REPLY = infer_stream_reply(MANIFEST)


async def step(request: sessions_pb2.StepRequest, context: Context) -> sessions_pb2.StepReply:
    return STEP_REPLY


async def infer(request: service_pb2.ModelInferRequest, context: Context) -> service_pb2.ModelInferResponse:
    return INFER_REPLY


async def infer_stream(requests: object, context: Context) -> None:
    while await context.read() is not aio.EOF:  # type: ignore[attr-defined]
        await context.write(INFER_STREAM_REPLY)


async def stream(requests: object, context: Context) -> None:
    """Of grpc.aio's two ways the faster one: reading and writing by the context."""
    while await context.read() is not aio.EOF:  # type: ignore[attr-defined]
        await context.write(STREAM_REPLY)


HANDLERS: dict[str, dict[str, Any]] = {
    "tidegate.v1.Sessions": {
        "Step": grpc.unary_unary_rpc_method_handler(
            step,
            sessions_pb2.StepRequest.FromString,
            sessions_pb2.StepReply.SerializeToString,
        )
    },
    "tidegate.v1.Predictor": {
        "Stream": grpc.stream_stream_rpc_method_handler(
            stream,
            predictor_pb2.StreamRequest.FromString,
            predictor_pb2.StreamReply.SerializeToString,
        )
    },
    "inference.GRPCInferenceService": {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            infer,
            service_pb2.ModelInferRequest.FromString,
            service_pb2.ModelInferResponse.SerializeToString,
        ),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            infer_stream,
            service_pb2.ModelInferRequest.FromString,
            service_pb2.ModelStreamInferResponse.SerializeToString,
        ),
    },
}


async def main() -> None:
    server = aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    handlers = [grpc.method_handlers_generic_handler(name, methods) for name, methods in HANDLERS.items()]
    server.add_generic_rpc_handlers(tuple(handlers))
    await server.start()
    say_ready(port)
    await server.wait_for_termination()


if __name__ == "__main__":
    run(main())
