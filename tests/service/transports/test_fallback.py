"""What stands in for h2corn: uvicorn and grpc.aio on sockets that we opened, with our limits and certificates.

That both answer as h2corn does is tests/e2e/test_contract.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.certificates import Authority
from tests.service.transports.interop import SERVICE, Interop, Stub, asking, handlers
from tidegate.config import load_settings
from tidegate.transports.asgi import Receive, Scope, Send
from tidegate.transports.fallback import GrpcAioServer, UvicornServer
from tidegate.transports.h2corn_server import Limits, TlsFiles
from tidegate.transports.listeners import listening, url_of
from tidegate.transports.servers import Servers

NUM_PINGS = 20


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request's body."""
    body, is_more = b"", True
    while is_more:
        event = await receive()
        body += event.get("body", b"")
        is_more = event.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def on_uvicorn(at: str = "127.0.0.1:0", tls: TlsFiles | None = None) -> AsyncIterator[tuple[UvicornServer, int]]:
    """Serve `echo`; yield the server and its port."""
    with listening("http", at) as listener:
        port = 0 if listener.family == socket.AF_UNIX else listener.getsockname()[1]
        server = UvicornServer(echo, listener, Limits(), tls)
        await server.start()
        try:
            yield server, port
        finally:
            await server.stop(5)


@contextlib.asynccontextmanager
async def on_grpc_aio(
    at: str = "127.0.0.1:0", tls: TlsFiles | None = None, servicer: Interop | None = None
) -> AsyncIterator[tuple[GrpcAioServer, str]]:
    """Serve the interoperability cases, and health; yield the server and its address."""

    def add_to(server: Any) -> None:
        methods = handlers(servicer or Interop())
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)  # type: ignore[attr-defined]

    with listening("grpc", at) as listener:
        address = url_of(listener).removeprefix("http://")
        server = GrpcAioServer(add_to, listener, Limits(), tls)
        await server.start()
        try:
            yield server, address
        finally:
            await server.stop(0)


async def answer_to(port: int, request: bytes) -> bytes:
    """Send a request on a connection of its own; return all that is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    reply = await reader.read()
    writer.close()
    return reply


@pytest.mark.parametrize(
    "offer", [b"POST / HTTP/1.0\r\n", b"POST / HTTP/1.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"]
)
async def test_old_http_and_offers_to_speak_another_keep_their_body(offer: bytes) -> None:
    connection = b"Connection: Upgrade, HTTP2-Settings, close\r\n" if b"Upgrade" in offer else b""
    async with on_uvicorn() as (_, port):
        reply = await answer_to(port, offer + connection + b"Host: here\r\nContent-Length: 4\r\n\r\nbody")
    assert reply.startswith(b"HTTP/1.1 200")
    assert reply.endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 300_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000])
async def test_a_head_without_end_is_refused(head: bytes) -> None:
    async with on_uvicorn() as (_, port):
        assert (await answer_to(port, head)).startswith(b"HTTP/1.1 400")


async def test_http_answers_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http"
    async with (
        on_uvicorn(f"unix:{path}"),
        httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client,
    ):
        assert (await client.post("http://here/", content=b"body")).content == b"body"
    assert not path.exists()


async def test_a_client_that_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with listening("http", "127.0.0.1:0") as listener, caplog.at_level(logging.WARNING):
        server = UvicornServer(wait, listener, Limits())
        await server.start()
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await begun.wait()
        writer.close()
        await cancelled.wait()
        await server.stop(5)
    assert caplog.records == []


async def test_grpc_takes_over_a_unix_socket_and_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "grpc"
    async with on_grpc_aio(f"unix:{path}") as (_, address), aio.insecure_channel(address) as channel:
        assert path.stat().st_mode & 0o777 == 0o600
        assert len((await Stub(channel).unary(asking(size=5))).value) == 5


async def test_grpc_takes_over_a_name_that_is_no_path() -> None:
    name = f"unix-abstract:tidegate-{id(asking)}"
    async with on_grpc_aio(name) as (_, address), aio.insecure_channel(address) as channel:
        assert len((await Stub(channel).unary(asking(size=5))).value) == 5


async def test_pings_over_an_idle_connection_are_answered_however_often_they_come() -> None:
    async with on_grpc_aio() as (_, address):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        client = h2.connection.H2Connection(h2.config.H2Configuration())
        client.initiate_connection()
        for number in range(NUM_PINGS):
            client.ping(number.to_bytes(8, "big"))
        writer.write(client.data_to_send())
        answered = 0
        while answered < NUM_PINGS:
            events = client.receive_data(await reader.read(65536))
            assert not any(isinstance(event, h2.events.ConnectionTerminated) for event in events)
            answered += sum(isinstance(event, h2.events.PingAckReceived) for event in events)
        writer.close()


async def test_a_call_in_flight_is_answered_when_grpc_stops_and_a_probe_is_not_waited_for() -> None:
    servicer = Interop()
    async with on_grpc_aio(servicer=servicer) as (server, address), aio.insecure_channel(address) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watching.read()
        call = Stub(channel).duplex()
        await call.write(asking(size=3))
        assert len((await call.read()).value) == 3
        stopping = asyncio.create_task(server.stop(60))
        await call.write(asking(size=4))
        assert len((await call.read()).value) == 4
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert await stopping


async def test_a_call_that_goes_on_is_cancelled_when_its_time_is_over() -> None:
    servicer = Interop()
    async with on_grpc_aio(servicer=servicer) as (server, address), aio.insecure_channel(address) as channel:
        call = Stub(channel).unary(asking(size=1, waits=1))
        await servicer.begun.wait()
        assert await server.stop(0)
        await servicer.cancelled.wait()
        assert await call.code() is not grpc.StatusCode.OK


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> TlsFiles:
    authority.sign("/CN=first", "server")
    return TlsFiles(tmp_path / "server.pem", tmp_path / "server.key", authority.own.certificate)


async def subject_of(port: int, context: ssl.SSLContext) -> str:
    """Whom the certificate names that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown: Any = writer.get_extra_info("peercert")
    writer.close()
    return str(shown["subject"][0][0][1])


Serving = Callable[..., Any]


@pytest.mark.parametrize("serve", [on_uvicorn, on_grpc_aio])
async def test_renewed_certificates_are_for_new_connections(
    serve: Serving, tls: TlsFiles, authority: Authority
) -> None:
    own = authority.sign("/CN=client", "client")
    context = ssl.create_default_context(cafile=authority.own.certificate)
    context.load_cert_chain(own.certificate, own.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with serve(tls=tls) as (server, where):
        port = int(str(where).rpartition(":")[2])
        assert await subject_of(port, context) == "first"
        authority.sign("/CN=second", "server")
        await server.renew()
        assert await subject_of(port, context) == "second"


async def test_a_client_without_a_certificate_is_turned_away(tls: TlsFiles, authority: Authority) -> None:
    root = authority.own.certificate
    async with (
        on_uvicorn(tls=tls) as (_, port),
        httpx.AsyncClient(verify=ssl.create_default_context(cafile=root)) as http,
    ):
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await http.get(f"https://127.0.0.1:{port}/")
    credentials = grpc.ssl_channel_credentials(root.read_bytes())
    async with on_grpc_aio(tls=tls) as (_, address), aio.secure_channel(address, credentials) as channel:
        with pytest.raises(aio.AioRpcError):
            await Stub(channel).unary(asking(size=1), timeout=10)


def test_settings_without_effect_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    given = {"asgi_server": "uvicorn", "stream_window_kb": 128, "tls_overlap": 60, "keep_alive": 13}
    Servers(load_settings(given), 2)
    assert [record.message for record in caplog.records] == [
        "without effect with --asgi-server uvicorn: --stream-window-kb, --tls-overlap"
    ]
