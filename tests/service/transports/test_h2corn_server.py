"""h2corn as our server: what it must hold back, its limits, TLS, renewal, the end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc import aio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from tests.certificates import Authority, Pair
from tests.service.transports.interop import Interop, Stub, asking, on_adapter
from tests.service.transports.serving import Front, front
from tidegate.transports.asgi import CLIENT_SUBJECT, Event, Receive, Scope, Send
from tidegate.transports.h2corn_server import H2cornServer, Limits, TlsFiles, connections_within
from tidegate.transports.listeners import listening

TLS_CLIENT_HELLO = b"\x16\x03\x01"


async def answer(send: Send, body: bytes = b"", status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


class Application:
    """What the path says: ``/echo`` its body, ``/scope`` of what it is asked, ``/wait`` until it is cancelled, …"""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._echo_frames(receive, send)
            return
        await getattr(self, scope["path"].strip("/"), self.echo)(scope, receive, send)

    async def echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, is_more = b"", True
        while is_more:
            self.begun.set()
            event = await receive()
            if event["type"] == "http.disconnect":
                self.cancelled.set()
                return
            body += event.get("body", b"")
            is_more = event.get("more_body", False)
        await answer(send, body)

    async def scope(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = {name: scope.get(name) for name in ("http_version", "scheme", "client", "server")}
        await answer(send, json.dumps({**seen, "subject": CLIENT_SUBJECT.get()}).encode())

    async def wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await answer(send, b"done")

    async def fail(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret")

    async def fail_late(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise RuntimeError("secret")

    async def misuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "no such event"})

    async def flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write for ever."""
        self.begun.set()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        finally:
            self.cancelled.set()

    async def _echo_frames(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.begun.set()
        try:
            while (event := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "bytes": event.get("bytes")})
        finally:
            self.cancelled.set()


@pytest.fixture
async def application() -> Application:
    return Application()


@pytest.fixture
async def served(application: Application) -> AsyncIterator[Front]:
    async with front(application) as served:
        yield served


@contextlib.asynccontextmanager
async def limited(application: Application, **limits: Any) -> AsyncIterator[Front]:
    async with front(application, limits=Limits(**limits)) as served:
        yield served


async def get(served: Front, path: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(http1=not options.pop("is_http2", False), http2=True) as client:
        return await client.get(f"http://{served.address}{path}", **options)


async def send_raw(served: Front, request: bytes) -> bytes:
    """What the server says until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


def head(path: str = "/echo", *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: a", *fields, "", ""]).encode()


# What is held back.


@pytest.mark.parametrize("is_http2", [False, True])
@pytest.mark.parametrize("path", ["/fail", "/misuse"])
async def test_an_exception_is_answered_and_logged_and_reaches_no_descriptor(
    served: Front, path: str, is_http2: bool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    capfd.readouterr()
    reply = await get(served, path, is_http2=is_http2)
    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert "secret" not in reply.text
    assert "unexpected error in a request" in caplog.text
    assert capfd.readouterr().err == ""


async def test_an_exception_within_an_answer_breaks_it_off(served: Front, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await get(served, "/fail_late")
    assert "secret" in caplog.text


async def test_systemd_is_told_nothing_and_keeps_its_address(
    application: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        async with front(application):
            assert os.environ["NOTIFY_SOCKET"] == str(path)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)


# Clients that leave.


@pytest.mark.parametrize("is_http2", [False, True])
async def test_a_client_that_leaves_cancels_its_request(
    application: Application, served: Front, is_http2: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    asking = asyncio.create_task(get(served, "/wait", is_http2=is_http2, timeout=None))
    await application.begun.wait()
    asking.cancel()
    await application.cancelled.wait()
    assert capfd.readouterr().err == ""


async def test_a_client_that_leaves_within_its_body_is_told_to_the_application(
    application: Application, served: Front
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(head("/echo", "content-length: 10", method="POST") + b"half")
    await application.begun.wait()
    writer.close()
    await application.cancelled.wait()


async def test_a_client_that_does_not_read_is_let_go(application: Application) -> None:
    with listening("http", "127.0.0.1:0", stalled=1) as listener:
        server = H2cornServer(application, listener, Limits(stalled=1))
        await server.start()
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(head("/flood"))
            await application.cancelled.wait()
        await server.stop(grace=0)


async def test_a_websocket_whose_client_leaves_ends(application: Application, served: Front) -> None:
    async with websocket(served):
        await application.begun.wait()
    await application.cancelled.wait()


# Limits.


@contextlib.asynccontextmanager
async def websocket(served: Front) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    key = base64.b64encode(bytes(16)).decode()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    fields = ["connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13", f"sec-websocket-key: {key}"]
    writer.write(head("/frames", *fields))
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.close()


def frame(payload: bytes) -> bytes:
    return struct.pack("!BBH", 0x82, 0x80 | 126, len(payload)) + bytes(4) + payload


@pytest.mark.parametrize(
    ("limits", "request_", "status"),
    [
        ({"url": 1000}, head("/" + "a" * 1000), 414),
        ({"head": 4000}, head("/echo", "x: " + "y" * 4000), 431),
        ({"fields": 10}, head("/echo", *["x: y"] * 11), 431),
        ({"body": 1000}, head("/echo", "content-length: 1001", method="POST"), 413),
    ],
)
async def test_a_request_over_a_limit_of_http_1_1(
    application: Application, limits: dict[str, Any], request_: bytes, status: int
) -> None:
    async with limited(application, **limits) as served:
        reply = await send_raw(served, request_)
    assert reply.startswith(f"HTTP/1.1 {status}".encode())


@pytest.mark.parametrize("size", [300_000, 900_000])
async def test_a_head_over_the_limit_of_http_2_is_refused_and_the_connection_goes_on(served: Front, size: int) -> None:
    async with httpx.AsyncClient(http1=False, http2=True) as client:
        url = f"http://{served.address}/echo"
        fields = {f"x-{number}": "y" * 10_000 for number in range(size // 10_000)}
        assert (await client.get(url, headers=fields)).status_code == 431
        assert (await client.get(url)).status_code == 200


async def test_a_frame_over_the_limit_ends_its_websocket(application: Application) -> None:
    async with limited(application, message=1000) as served, websocket(served) as (reader, writer):
        writer.write(frame(bytes(1000)))
        assert await reader.readexactly(1004) == b"\x82\x7e" + struct.pack("!H", 1000) + bytes(1000)
        writer.write(frame(bytes(1001)))
        assert (await reader.read())[2:4] == struct.pack("!H", 1009)


@pytest.mark.parametrize(
    ("limits", "request_"),
    [
        ({"handshake": 0.1}, b""),
        ({"idle": 0.1}, head()),
        ({"idle": 0.1}, b"GET / HT"),
        ({"idle": 0.1}, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
        ({"body_idle": 0.1}, head("/echo", "content-length: 9", method="POST") + b"half"),
    ],
    ids=["says nothing", "idle after a request", "half a head", "idle over HTTP/2", "half a body"],
)
async def test_a_connection_that_takes_too_long_is_closed(
    application: Application, limits: dict[str, Any], request_: bytes
) -> None:
    async with limited(application, **limits) as served:
        await send_raw(served, request_)


async def test_a_websocket_that_answers_no_pings_is_closed(application: Application) -> None:
    async with limited(application, ping=0.1) as served, websocket(served) as (reader, _):
        await reader.read()
        await application.cancelled.wait()


async def test_connections_over_the_cap_wait_for_a_place(application: Application) -> None:
    async with limited(application, connections=2) as served:
        held = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(2)]
        for each in held:
            each.sendall(b"GET / HT")
        waiting = asyncio.create_task(get(served, "/echo"))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        held[0].close()
        assert (await waiting).status_code == 200
        held[1].close()


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until the log has a line with this text."""
    found = asyncio.Event()
    handler = logging.Handler()
    handler.emit = lambda record: found.set() if text in record.getMessage() else None  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        if text not in caplog.text:
            await found.wait()
    finally:
        logging.getLogger().removeHandler(handler)


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_running_out_of_descriptors_is_logged_once_and_passes(
    application: Application, served: Front, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [socket.socket() for _ in range(60)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_descriptors() + 8, hard))
    try:
        for client in clients:
            client.connect(("127.0.0.1", served.port))
        await logged(caplog, "too many")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            client.close()
    assert (await get(served, "/echo", timeout=10)).status_code == 200
    assert caplog.text.count("all connections are lost") == 1


def test_listeners_share_the_descriptors_that_there_are() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1256, hard))
        assert [connections_within(4096, count) for count in (1, 4)] == [1000, 250]
        assert connections_within(100, 4) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# HTTP as clients speak it.


async def test_a_post_that_offers_another_protocol_keeps_its_body(served: Front) -> None:
    fields = ["connection: Upgrade, HTTP2-Settings, close", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"]
    reply = await send_raw(served, head("/echo", *fields, "content-length: 5", method="POST") + b"hello")
    assert reply.startswith(b"HTTP/1.1 200")
    assert reply.endswith(b"hello")


@pytest.mark.parametrize("is_http2", [False, True])
async def test_what_the_application_sees_of_a_request(served: Front, is_http2: bool) -> None:
    seen = (await get(served, "/scope", is_http2=is_http2)).json()
    assert seen["http_version"] == ("2" if is_http2 else "1.1")
    assert (seen["scheme"], seen["subject"], seen["client"][0]) == ("http", None, "127.0.0.1")


async def test_pings_of_an_idle_stream_are_answered_however_often(application: Application) -> None:
    options = [
        ("grpc.keepalive_time_ms", 20),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_sent_ping_interval_without_data_ms", 10),
    ]
    async with on_adapter(Interop()) as (_, served), aio.insecure_channel(served.address, options=options) as channel:
        call = Stub(channel).duplex()
        for _ in range(3):
            await call.write(asking(size=1))
            assert len((await call.read()).value) == 1
            await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=0.2)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_over_a_unix_socket(application: Application, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with front(application, f"unix:{path}"):
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport) as client:
            seen = (await client.get("http://tidegate/scope")).json()
        async with aio.insecure_channel(f"unix:{path}") as channel:
            with pytest.raises(aio.AioRpcError):
                await channel.unary_unary("/x", bytes, bytes)(b"")
    assert seen["client"] is None
    assert not path.exists()


# TLS.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> TlsFiles:
    """A server's certificate and key, at paths of their own, so that they can be written anew."""
    files = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    install(authority.sign("/CN=first", "first"), files)
    return files


def install(pair: Pair, files: TlsFiles) -> None:
    files.certificate.write_bytes(pair.certificate.read_bytes())
    files.key.write_bytes(pair.key.read_bytes())


def trusting(authority: Authority, client: Pair | None = None, alpn: list[str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.own.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


async def subject_of_server(served: Front, context: ssl.SSLContext) -> tuple[str, str | None]:
    """The common name of the certificate that new connections see, and the protocol that was agreed on."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context)
    tls = writer.get_extra_info("ssl_object")
    try:
        return dict(pair for (pair,) in tls.getpeercert()["subject"])["commonName"], tls.selected_alpn_protocol()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("offered", "agreed"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["h2"], "h2"), ([], None)]
)
async def test_tls_agrees_on_the_protocol(
    application: Application, authority: Authority, files: TlsFiles, offered: list[str], agreed: str | None
) -> None:
    async with front(application, tls=files) as served:
        found = await subject_of_server(served, trusting(authority, alpn=offered))
    assert found == ("first", agreed)


@pytest.mark.parametrize("is_http2", [False, True])
async def test_the_subject_of_a_clients_certificate_reaches_the_application(
    application: Application, authority: Authority, files: TlsFiles, is_http2: bool
) -> None:
    ann = authority.sign("/O=tidegate/CN=ann", "ann")
    tls = TlsFiles(files.certificate, files.key, authority.own.certificate, is_client_required=False)
    async with front(application, tls=tls) as served:
        for context, subject in ((trusting(authority, ann), "CN=ann,O=tidegate"), (trusting(authority), None)):
            async with httpx.AsyncClient(verify=context, http1=not is_http2, http2=is_http2) as client:
                seen = (await client.get(f"https://{served.address}/scope")).json()
            assert (seen["scheme"], seen["subject"]) == ("https", subject)


async def test_a_client_without_a_certificate_is_turned_away_where_one_is_required(
    application: Application, authority: Authority, files: TlsFiles, tmp_path: Path
) -> None:
    tls = TlsFiles(files.certificate, files.key, authority.own.certificate)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").sign("/CN=stranger", "stranger")
    async with front(application, tls=tls) as served:
        for context in (trusting(authority), trusting(authority, stranger)):
            async with httpx.AsyncClient(verify=context) as client:
                with pytest.raises((httpx.TransportError, ssl.SSLError)):
                    await client.get(f"https://{served.address}/scope")


async def test_grpc_over_tls_knows_its_clients_subject(authority: Authority, files: TlsFiles) -> None:
    ann = authority.sign("/CN=ann", "ann")
    tls = TlsFiles(files.certificate, files.key, authority.own.certificate)
    credentials = grpc.ssl_channel_credentials(
        authority.own.certificate.read_bytes(), ann.key.read_bytes(), ann.certificate.read_bytes()
    )
    async with (
        on_adapter(Interop(), tls=tls) as (_, served),
        aio.secure_channel(f"localhost:{served.port}", credentials) as channel,
    ):
        assert len((await Stub(channel).unary(asking(size=3))).value) == 3


async def test_a_renewed_certificate_is_for_new_connections_and_breaks_no_old_one(
    authority: Authority, files: TlsFiles
) -> None:
    credentials = grpc.ssl_channel_credentials(authority.own.certificate.read_bytes())
    async with (
        on_adapter(Interop(), tls=files) as (_, served),
        aio.secure_channel(f"localhost:{served.port}", credentials) as channel,
    ):
        call = Stub(channel).duplex()
        for number in range(20):
            if number == 10:
                install(authority.sign("/CN=second", "second"), files)
                await served.server.renew()
                assert (await subject_of_server(served, trusting(authority)))[0] == "second"
            await call.write(asking(size=number))
            assert len((await call.read()).value) == number
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_a_renewal_lets_websockets_answer_before_they_end(authority: Authority, files: TlsFiles) -> None:
    has_read, ending = asyncio.Event(), asyncio.Event()

    async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        has_read.set()
        await ending.wait()
        await send({"type": "websocket.send", "text": "answer"})
        await send({"type": "websocket.close", "code": 1001, "reason": "by itself"})

    with listening("http", "127.0.0.1:0") as listener:
        server = H2cornServer(answer_late, listener, Limits(), files, end_streams=lambda _: ending.set())
        await server.start()
        served = Front(server, listener)
        async with connect(f"wss://localhost:{served.port}", ssl=trusting(authority)) as socket:
            await socket.send("step")
            await has_read.wait()
            install(authority.sign("/CN=second", "second"), files)
            await server.renew()
            assert await socket.recv() == "answer"
            with pytest.raises(ConnectionClosedOK, match="by itself"):
                await socket.recv()
        assert (await subject_of_server(served, trusting(authority)))[0] == "second"
        await server.stop(grace=0)


@pytest.mark.parametrize("spoil", [lambda file: file.write_text("no PEM"), Path.unlink], ids=["malformed", "missing"])
async def test_a_certificate_that_cannot_be_renewed_stays(
    application: Application, authority: Authority, files: TlsFiles, spoil: Callable[[Path], Any]
) -> None:
    async with front(application, tls=files) as served:
        spoil(files.certificate)
        with pytest.raises((OSError, ValueError), match="certfile"):
            await served.server.renew()
        assert (await subject_of_server(served, trusting(authority)))[0] == "first"


def test_files_that_are_written_anew_have_another_stamp(authority: Authority, files: TlsFiles) -> None:
    before = files.stamps()
    assert files.stamps() == before
    install(authority.sign("/CN=again", "again"), files)
    assert files.stamps() != before


async def test_plain_text_on_a_tls_port_is_refused(application: Application, files: TlsFiles) -> None:
    async with front(application, tls=files) as served:
        assert not (await send_raw(served, head())).startswith(b"HTTP/1.1 200")


# The end.


async def test_stopping_lets_a_request_finish(application: Application, served: Front) -> None:
    asking = asyncio.create_task(get(served, "/wait", timeout=None))
    await application.begun.wait()
    stopping = asyncio.create_task(served.server.stop(grace=10))
    await asyncio.sleep(0)
    application.go_on.set()
    assert (await asking).text == "done"
    await stopping


async def test_stopping_tells_requests_that_do_not_finish(application: Application, served: Front) -> None:
    asking = asyncio.create_task(get(served, "/wait", timeout=None))
    await application.begun.wait()
    await served.server.stop(grace=0)
    reply = await asking
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert application.cancelled.is_set()


async def test_stopping_closes_websockets(application: Application, served: Front) -> None:
    async with websocket(served) as (reader, _):
        await served.server.stop(grace=0)
        await reader.read()


async def test_a_server_that_stops_refuses_connections_at_once(application: Application, served: Front) -> None:
    address = served.address
    asking = asyncio.create_task(get(served, "/wait", timeout=None))
    await application.begun.wait()
    stopping = asyncio.create_task(served.server.stop(grace=10))
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", served.port)
    with listening("http", address):  # its successor
        application.go_on.set()
        assert (await asking).text == "done"
        assert await stopping


async def test_what_the_application_sends_too_late_is_no_error(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)
        event: Event = {"type": "http.response.body", "body": b"late"}
        await send(event)

    async with front(late) as served:
        assert (await get(served, "/")).status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
