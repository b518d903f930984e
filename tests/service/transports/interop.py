"""A servicer for gRPC's interoperability cases, on protobuf's well-known types; and servers that run it.

The cases are those of github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from google.protobuf import empty_pb2, struct_pb2, wrappers_pb2
from grpc import aio

from tests.service.transports.serving import Front, front
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.h2corn_server import TlsFiles

SERVICE = "test.Interop"
INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"

Context = Any
Request = Any
"""A struct, whose fields have no types of their own."""


class Interop:
    """Requests are structs: ``size`` of the reply, or ``sizes`` of many; ``code`` and ``message`` to end with;
    ``waits`` for ever; ``compressed``.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.num_written = 0

    async def empty(self, request: empty_pb2.Empty, context: Context) -> empty_pb2.Empty:
        return request

    async def unary(self, request: Request, context: Context) -> wrappers_pb2.BytesValue:
        await self._obey(request, context)
        if "code" in request:
            await context.abort(_code(request), request["message"])
        return wrappers_pb2.BytesValue(value=bytes(int(request["size"])))

    async def status(self, request: Request, context: Context) -> wrappers_pb2.BytesValue:
        """End with a status that is set and not raised."""
        context.set_code(_code(request))
        context.set_details(request["message"])
        return wrappers_pb2.BytesValue()

    async def output(self, request: Request, context: Context) -> AsyncIterator[wrappers_pb2.BytesValue]:
        await self._obey(request, context)
        for size in request["sizes"]:
            yield wrappers_pb2.BytesValue(value=bytes(int(size)))
            self.num_written += 1
        if "code" in request:
            await context.abort(_code(request), request["message"])

    async def flood(self, request: Request, context: Context) -> None:
        """Write for ever, by the context."""
        try:
            while True:
                await context.write(wrappers_pb2.BytesValue(value=bytes(int(request["size"]))))
                self.num_written += 1
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def input(
        self, requests: AsyncIterator[wrappers_pb2.BytesValue], context: Context
    ) -> wrappers_pb2.Int64Value:
        self.begun.set()
        try:
            return wrappers_pb2.Int64Value(value=sum([len(request.value) async for request in requests]))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def duplex(self, requests: object, context: Context) -> None:
        """Answer each request with its reply, by the context."""
        self.begun.set()
        try:
            while (request := await context.read()) is not aio.EOF:  # type: ignore[attr-defined]
                await self._obey(request, context)
                if "code" in request:
                    await context.abort(_code(request), request["message"])
                await context.write(wrappers_pb2.BytesValue(value=bytes(int(request["size"]))))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def blocking(self, request: Request, context: grpc.ServicerContext) -> wrappers_pb2.BytesValue:
        self._obey_blocking(context)
        if "code" in request:
            context.abort(_code(request), request["message"])
        return wrappers_pb2.BytesValue(value=bytes(int(request["size"])))

    def blocking_duplex(
        self, requests: Iterator[Request], context: grpc.ServicerContext
    ) -> Iterator[wrappers_pb2.BytesValue]:
        self._obey_blocking(context)
        for request in requests:
            yield wrappers_pb2.BytesValue(value=bytes(int(request["size"])))

    async def _obey(self, request: Request, context: Context) -> None:
        self.begun.set()
        metadata = dict(context.invocation_metadata())
        if "compressed" in request:
            context.set_compression(grpc.Compression.Gzip)
        if INITIAL in metadata:
            await context.send_initial_metadata(((INITIAL, metadata[INITIAL]),))
        if TRAILING in metadata:
            context.set_trailing_metadata(((TRAILING, metadata[TRAILING]),))
        if "waits" in request:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

    @staticmethod
    def _obey_blocking(context: grpc.ServicerContext) -> None:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        if INITIAL in metadata:
            context.send_initial_metadata(((INITIAL, metadata[INITIAL]),))
        if TRAILING in metadata:
            context.set_trailing_metadata(((TRAILING, metadata[TRAILING]),))


def _code(request: Request) -> grpc.StatusCode:
    return grpc.StatusCode[str(request["code"])]


def handlers(servicer: Interop) -> dict[str, Any]:
    """The servicer's methods, as generated code would register them."""
    empty, struct = empty_pb2.Empty, struct_pb2.Struct
    value, number = wrappers_pb2.BytesValue, wrappers_pb2.Int64Value
    unary_unary, unary_stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    stream_unary, stream_stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    methods: Any = {
        "Empty": unary_unary(servicer.empty, empty.FromString, empty.SerializeToString),
        "Unary": unary_unary(servicer.unary, struct.FromString, value.SerializeToString),
        "Status": unary_unary(servicer.status, struct.FromString, value.SerializeToString),
        "Output": unary_stream(servicer.output, struct.FromString, value.SerializeToString),
        "Flood": unary_stream(servicer.flood, struct.FromString, value.SerializeToString),
        "Input": stream_unary(servicer.input, value.FromString, number.SerializeToString),
        "Duplex": stream_stream(servicer.duplex, struct.FromString, value.SerializeToString),
        "Blocking": unary_unary(servicer.blocking, struct.FromString, value.SerializeToString),
        "BlockingDuplex": stream_stream(servicer.blocking_duplex, struct.FromString, value.SerializeToString),
    }
    return dict(methods)


class Stub:
    """Calls of the servicer's methods over a channel of grpcio, asynchronous or not."""

    def __init__(self, channel: Any) -> None:
        empty, struct = empty_pb2.Empty, struct_pb2.Struct
        value, number = wrappers_pb2.BytesValue, wrappers_pb2.Int64Value

        def method(kind: Any, name: str, request: Any, reply: Any) -> Any:
            return kind(
                f"/{SERVICE}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=reply.FromString,
            )

        self.empty = method(channel.unary_unary, "Empty", empty, empty)
        self.unary = method(channel.unary_unary, "Unary", struct, value)
        self.status = method(channel.unary_unary, "Status", struct, value)
        self.output = method(channel.unary_stream, "Output", struct, value)
        self.flood = method(channel.unary_stream, "Flood", struct, value)
        self.input = method(channel.stream_unary, "Input", value, number)
        self.duplex = method(channel.stream_stream, "Duplex", struct, value)
        self.blocking = method(channel.unary_unary, "Blocking", struct, value)
        self.blocking_duplex = method(channel.stream_stream, "BlockingDuplex", struct, value)


def asking(**fields: Any) -> struct_pb2.Struct:
    """A request of these fields."""
    request = struct_pb2.Struct()
    request.update(fields)
    return request


@asynccontextmanager
async def on_adapter(
    servicer: Interop, tls: TlsFiles | None = None, **options: Any
) -> AsyncIterator[tuple[GrpcAdapter, Front]]:
    """The servicer behind the adapter, on h2corn and a real socket."""
    adapter = GrpcAdapter(**options)
    adapter.add_registered_method_handlers(SERVICE, handlers(servicer))
    async with front(adapter, tls=tls) as served:
        yield adapter, served


@asynccontextmanager
async def on_grpcio(servicer: Interop) -> AsyncIterator[str]:
    """The servicer on grpc.aio's own server: what the adapter is held against. Yields the address."""
    server = aio.server()
    methods = handlers(servicer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextmanager
def blocking_stub(address: str, **options: Any) -> Iterator[Stub]:
    """A stub of grpcio's synchronous client."""
    with grpc.insecure_channel(address, **options) as channel:
        yield Stub(channel)
