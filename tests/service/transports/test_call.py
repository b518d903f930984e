"""What a call is to its servicer, and how it ends: deadlines, drains, interceptors, back-pressure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from tests.service.transports.asgi import Exchange, body_of, http_scope
from tests.service.transports.interop import SERVICE, Interop, Stub, asking, handlers, on_adapter
from tidegate.clock import Clock
from tidegate.errors import NotFoundError
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.grpc.call import Call
from tidegate.transports.grpc.framing import pack

Code = grpc.StatusCode
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
EMPTY = body_of([pack(b"")])


def adapter_for(empty: Callable[[Any, Call], Awaitable[Any]], **options: Any) -> GrpcAdapter:
    """An adapter with one method, ``/test.Interop/Empty``."""
    adapter = GrpcAdapter(**options)
    handler = grpc.unary_unary_rpc_method_handler(empty, empty_pb2.Empty.FromString, empty_pb2.Empty.SerializeToString)
    adapter.add_registered_method_handlers(SERVICE, {"Empty": handler})
    return adapter


async def seen_by_servicer(question: Callable[[Call], Any], **scope: Any) -> Any:
    """What a servicer sees of its call."""
    seen = []

    async def empty(request: Any, call: Call) -> Any:
        seen.append(question(call))
        return request

    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC) | scope, EMPTY)
    await exchange.run(adapter_for(empty))
    return seen[0]


@pytest.mark.parametrize(
    ("client", "peer"),
    [(("10.0.0.1", 5), "ipv4:10.0.0.1:5"), (("::1", 5), "ipv6:[::1]:5"), (None, "unix:")],
)
async def test_the_peer_is_written_as_grpc_does(client: tuple[str, int] | None, peer: str) -> None:
    assert await seen_by_servicer(Call.peer, client=client) == peer


async def test_the_client_certificates_subject_is_the_calls_identity() -> None:
    tls = {"client_cert_name": "CN=ann", "client_cert_chain": ("PEM",)}
    extensions = {"http.response.trailers": {}, "tls": tls}
    context = await seen_by_servicer(lambda call: call, extensions=extensions)
    assert context.auth_context()["x509_subject"] == [b"CN=ann"]
    assert context.auth_context()["x509_pem_cert"] == [b"PEM"]
    assert context.peer_identities() == [b"CN=ann"]
    assert context.peer_identity_key() == "x509_subject"


async def test_a_call_without_a_certificate_has_no_identity() -> None:
    context = await seen_by_servicer(lambda call: call)
    assert (context.auth_context(), context.peer_identities(), context.peer_identity_key()) == ({}, None, None)


async def test_time_remaining_by_the_injected_clock() -> None:
    now, seen = [100.0], []

    async def empty(request: Any, call: Call) -> Any:
        seen.append(call.time_remaining())
        now[0] += 2
        seen.append(call.time_remaining())
        now[0] += 10
        seen.append(call.time_remaining())
        return request

    scope = http_scope(f"/{SERVICE}/Empty", [*GRPC, (b"grpc-timeout", b"5S")])
    await Exchange(scope, EMPTY).run(adapter_for(empty, clock=Clock(monotonic=lambda: now[0])))
    assert seen == [5, 3, 0]
    assert await seen_by_servicer(Call.time_remaining) is None


async def test_a_deadline_cancels_the_servicer_and_is_told() -> None:
    cancelled = []

    async def empty(request: Any, call: Call) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(call)
            raise

    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", [*GRPC, (b"grpc-timeout", b"1m")]), EMPTY)
    await exchange.run(adapter_for(empty))
    assert exchange.trailers[b"grpc-status"] == b"4"
    assert len(cancelled) == 1
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_callbacks_are_told_the_end() -> None:
    ended: list[tuple[Any, bool]] = []

    async def empty(request: Any, call: Call) -> Any:
        call.add_done_callback(lambda context: ended.append((context, context.done())))
        call.add_done_callback(lambda context: ended.append((context, context.cancelled())))
        assert not call.done()
        return request

    await Exchange(http_scope(f"/{SERVICE}/Empty", GRPC), EMPTY).run(adapter_for(empty))
    assert [flag for _, flag in ended] == [True, False]
    assert ended[0][0] is ended[1][0]


async def test_an_error_of_ours_ends_the_call_with_its_status() -> None:
    async def empty(request: Any, call: Call) -> Any:
        raise NotFoundError("no such thing")

    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC), EMPTY)
    await exchange.run(adapter_for(empty))
    assert exchange.trailers[b"grpc-status"] == b"5"
    assert exchange.trailers[b"grpc-message"] == b"no such thing"
    assert b"grpc-status-details-bin" in exchange.trailers


async def test_an_abort_with_status_keeps_trailing_metadata_that_was_set() -> None:
    async def empty(request: Any, call: Call) -> Any:
        call.set_trailing_metadata((("x-set", "1"),))
        await call.abort(Code.ABORTED, "no")

    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC), EMPTY)
    await exchange.run(adapter_for(empty))
    assert exchange.trailers[b"x-set"] == b"1"
    assert exchange.trailers[b"grpc-status"] == b"10"


async def test_an_abort_with_ok_is_the_servicers_fault() -> None:
    async def empty(request: Any, call: Call) -> Any:
        await call.abort(Code.OK)

    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC), EMPTY)
    await exchange.run(adapter_for(empty))
    assert exchange.trailers[b"grpc-status"] == b"2"


async def test_a_client_that_leaves_while_it_is_read_cancels_the_call() -> None:
    adapter = GrpcAdapter()
    servicer = Interop()
    adapter.add_registered_method_handlers(SERVICE, handlers(servicer))
    begun = {"type": "http.request", "body": pack(asking(size=1).SerializeToString()), "more_body": True}
    exchange = Exchange(http_scope(f"/{SERVICE}/Duplex", GRPC), [begun, {"type": "http.disconnect"}])
    with pytest.raises(asyncio.CancelledError):
        await exchange.run(adapter)
    assert servicer.cancelled.is_set()


async def test_a_client_that_leaves_while_another_task_reads_cancels_the_call() -> None:
    async def duplex(requests: object, call: Call) -> None:
        await asyncio.gather(call.read(), asyncio.Event().wait())

    adapter = GrpcAdapter()
    adapter.add_registered_method_handlers(SERVICE, {"Duplex": grpc.stream_stream_rpc_method_handler(duplex)})
    exchange = Exchange(http_scope(f"/{SERVICE}/Duplex", GRPC), [{"type": "http.disconnect"}])
    with pytest.raises(asyncio.CancelledError):
        await exchange.run(adapter)


async def test_a_client_that_leaves_while_it_is_written_to_cancels_the_call() -> None:
    servicer = Interop()
    adapter = GrpcAdapter()
    adapter.add_registered_method_handlers(SERVICE, handlers(servicer))

    async def send(event: Any) -> None:
        raise OSError("the stream is closed")

    exchange = Exchange(http_scope(f"/{SERVICE}/Flood", GRPC), body_of([pack(asking(size=1).SerializeToString())]))
    with pytest.raises(asyncio.CancelledError):
        await adapter(exchange.scope, exchange.receive, send)
    assert servicer.cancelled.is_set()


async def test_a_servicer_waits_while_its_client_does_not_read() -> None:
    servicer = Interop()
    adapter = GrpcAdapter()
    adapter.add_registered_method_handlers(SERVICE, handlers(servicer))
    request = body_of([pack(asking(size=1).SerializeToString())])
    exchange = Exchange(http_scope(f"/{SERVICE}/Flood", GRPC), request, most_sent=4)
    running = asyncio.create_task(exchange.run(adapter))
    await exchange.is_full.wait()
    assert servicer.num_written == 3
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_generator_is_closed_when_its_call_ends_early() -> None:
    closed = asyncio.Event()

    async def output(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield empty_pb2.Empty()
        finally:
            closed.set()

    adapter = GrpcAdapter()
    serialize = empty_pb2.Empty.SerializeToString
    adapter.add_registered_method_handlers(
        SERVICE, {"Output": grpc.unary_stream_rpc_method_handler(output, None, serialize)}
    )
    exchange = Exchange(http_scope(f"/{SERVICE}/Output", GRPC), EMPTY, most_sent=3)
    running = asyncio.create_task(exchange.run(adapter))
    await exchange.is_full.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert closed.is_set()


async def test_a_thread_ends_with_the_call_that_it_reads() -> None:
    begun, ended = threading.Event(), threading.Event()

    def duplex(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        begun.set()
        try:
            yield from requests
        finally:
            ended.set()

    adapter = GrpcAdapter()
    adapter.add_registered_method_handlers(SERVICE, {"Duplex": grpc.stream_stream_rpc_method_handler(duplex)})
    running = asyncio.create_task(Exchange(http_scope(f"/{SERVICE}/Duplex", GRPC)).run(adapter))
    await asyncio.to_thread(begun.wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(ended.wait)


async def test_trailing_metadata_that_cannot_be_sent_is_the_servicers_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def empty(request: Any, call: Call) -> Any:
        call.set_trailing_metadata((("x", "a\r\nb"),))
        return request

    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC), EMPTY)
    await exchange.run(adapter_for(empty))
    assert exchange.trailers[b"grpc-status"] == b"13"
    assert "printable ASCII" in caplog.text


async def test_initial_metadata_is_sent_once() -> None:
    async def empty(request: Any, call: Call) -> Any:
        await call.send_initial_metadata((("x", "1"),))
        with pytest.raises(aio.UsageError):
            await call.send_initial_metadata((("x", "2"),))
        return request

    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC), EMPTY)
    await exchange.run(adapter_for(empty))
    assert exchange.headers[b"x"] == b"1"


async def test_an_adapter_is_idle_when_its_last_call_has_ended() -> None:
    async with on_adapter(Interop()) as (adapter, served), aio.insecure_channel(served.address) as channel:
        stub = Stub(channel)
        call = stub.duplex()
        await call.write(asking(size=1))
        await call.read()
        waiting = asyncio.create_task(adapter.wait_idle())
        await stub.empty(empty_pb2.Empty())  # which begins and ends meanwhile
        assert not waiting.done()
        await call.write(asking(size=2))
        assert len((await call.read()).value) == 2
        await call.done_writing()
        assert await call.code() is Code.OK
        await waiting


async def test_an_adapter_that_was_never_asked_is_idle() -> None:
    await GrpcAdapter().wait_idle()


async def test_probes_are_not_waited_for() -> None:
    async with on_adapter(Interop()) as (adapter, served), aio.insecure_channel(served.address) as channel:
        servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(servicer, adapter)
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        status = health_pb2.HealthCheckResponse.ServingStatus
        assert (await watch.read()).status == status.SERVING
        await adapter.wait_idle()
        await servicer.enter_graceful_shutdown()
        assert (await watch.read()).status == status.NOT_SERVING
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == status.NOT_SERVING


async def test_a_server_that_stops_tells_calls_that_run() -> None:
    async with on_adapter(Interop()) as (_, served), aio.insecure_channel(served.address) as channel:
        call = Stub(channel).duplex()
        await call.write(asking(size=1))
        await call.read()
        await served.server.stop(grace=0)
        assert await call.code() is Code.UNAVAILABLE
        assert await call.details() == "the server is stopping"


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_health_and_reflection_of_grpcio(asynchronous: bool) -> None:
    adapter_options: dict[str, Any] = {}
    async with on_adapter(Interop(), **adapter_options) as (adapter, served):
        checking: Any = health.aio.HealthServicer() if asynchronous else health.HealthServicer()  # type: ignore[attr-defined]
        reflecting: Any = reflection.aio if asynchronous else reflection  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(checking, adapter)
        names = (health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting.ReflectionServicer(names), adapter)
        setting = checking.set("x", health_pb2.HealthCheckResponse.SERVING)
        if asynchronous:
            await setting
        async with aio.insecure_channel(served.address) as channel:
            probes = health_pb2_grpc.HealthStub(channel)
            reply = await probes.Check(health_pb2.HealthCheckRequest(service="x"))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            unknown = probes.Check(health_pb2.HealthCheckRequest(service="y"))
            assert await unknown.code() is Code.NOT_FOUND
            watch = probes.Watch(health_pb2.HealthCheckRequest(service="x"))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            infos = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await infos.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            listed = (await infos.read()).list_services_response.service
            assert {service.name for service in listed} == set(names)
            await infos.done_writing()
            assert await infos.code() is Code.OK


class Recording(aio.ServerInterceptor):  # type: ignore[type-arg] # not generic at run time
    """Notes paths, and refuses calls whose metadata says so."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        self.seen.append((handler_call_details.method, metadata.get("x-user")))
        if metadata.get("x-user") == "nobody":

            async def refuse(request: Any, context: Any) -> None:
                await context.abort(Code.UNAUTHENTICATED, "who are you?")

            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(handler_call_details)


async def test_interceptors_of_grpc_aio_see_every_call() -> None:
    first, second = Recording(), Recording()
    async with (
        on_adapter(Interop(), interceptors=[first, second]) as (_, served),
        aio.insecure_channel(served.address) as channel,
    ):
        stub = Stub(channel)
        await stub.empty(empty_pb2.Empty(), metadata=(("x-user", "ann"),))
        refused = stub.empty(empty_pb2.Empty(), metadata=(("x-user", "nobody"),))
        assert (await refused.code(), await refused.details()) == (Code.UNAUTHENTICATED, "who are you?")
    path = f"/{SERVICE}/Empty"
    assert first.seen == [(path, "ann"), (path, "nobody")]
    assert second.seen == [(path, "ann")]


async def test_generic_handlers_are_asked_for_methods_that_are_not_registered() -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        return request

    adapter = GrpcAdapter()
    handler = grpc.method_handlers_generic_handler("more.More", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    adapter.add_generic_rpc_handlers((handler,))
    exchange = Exchange(http_scope("/more.More/Echo", GRPC), body_of([pack(b"abc")]))
    await exchange.run(adapter)
    assert exchange.body == pack(b"abc")
