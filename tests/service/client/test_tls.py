"""TLS of the client: whom it reaches, and what it says where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.certificates import Authority, Pair
from tests.service.client.reach import on_grpcio, on_h2corn
from tidegate.client import AsyncClient, Client, Tls
from tidegate.errors import ConfigurationError, TidegateError, UnavailableError
from tidegate.transports.h2corn_server import TlsFiles

SECONDS = 60


class Files(NamedTuple):
    """Certificates of an authority, of a server and of a client; and of somebody else."""

    ca: Path
    server: Pair
    client: Pair
    stranger: Authority
    strange_client: Pair


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    authority, stranger = Authority(folder), Authority(folder, "stranger")
    server, client = authority.sign("/CN=server", "server"), authority.sign("/CN=ann", "client")
    return Files(authority.own.certificate, server, client, stranger, stranger.sign("/CN=eve", "eve"))


@pytest.fixture(params=["h2corn", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def serving(kind: str, files: Files, *, is_tls: bool = True, is_mutual: bool = False) -> AsyncIterator[str]:
    """A server of that kind; yields its HOST:PORT."""
    pair, ca = files.server, files.ca if is_mutual else None
    if kind == "h2corn":
        async with on_h2corn(tls=TlsFiles(pair.certificate, pair.key, ca) if is_tls else None) as (address, _):
            yield address
    else:
        async with on_grpcio(pair if is_tls else None, ca.read_bytes() if ca else None) as address:
            yield address


async def ask(address: str, tls: bool | Tls | None = None) -> None:
    async with AsyncClient(address, tls=tls, timeout=SECONDS) as client:
        assert await client.models() == []


async def failure(address: str, tls: bool | Tls | None = None) -> TidegateError:
    with pytest.raises(TidegateError) as caught:
        await ask(address, tls)
    return caught.value


async def test_a_server_whose_signer_is_known_is_reached(kind: str, files: Files) -> None:
    async with serving(kind, files) as address:
        await ask(f"https://{address}", Tls(files.ca))
        await ask(address, Tls(files.ca))


async def test_the_blocking_client_speaks_tls_too(files: Files) -> None:
    def blocking(address: str) -> None:
        with Client(f"https://{address}", tls=Tls(files.ca), timeout=SECONDS) as client:
            assert client.models() == []
        with Client(f"https://{address}", timeout=SECONDS) as client, pytest.raises(ConfigurationError):
            client.models()

    async with serving("h2corn", files) as address:
        await asyncio.to_thread(blocking, address)


async def test_a_client_shows_its_certificate(kind: str, files: Files) -> None:
    async with serving(kind, files, is_mutual=True) as address:
        await ask(address, Tls(files.ca, files.client.certificate, files.client.key))


async def test_another_name_may_be_looked_for_in_the_certificate(kind: str, files: Files) -> None:
    async with serving(kind, files) as address:
        await ask(address, Tls(files.ca, server_name="localhost"))
        error = await failure(address, Tls(files.ca, server_name="example.org"))
    assert isinstance(error, ConfigurationError)
    assert "is for another name" in error.message


async def test_a_server_of_an_unknown_signer_is_told(kind: str, files: Files) -> None:
    async with serving(kind, files) as address:
        for tls in (True, Tls(files.stranger.own.certificate)):
            error = await failure(address, tls)
            assert isinstance(error, ConfigurationError)
            assert f"the certificate of {address} is not trusted (unable to get local issuer" in error.message
            assert error.reason == "TLS_MISMATCH"


async def test_plain_text_to_a_port_of_tls_is_told(kind: str, files: Files) -> None:
    async with serving(kind, files) as address:
        error = await failure(address)
    # Whether it speaks TLS or is about to stop is not known: so the request may be tried again.
    assert isinstance(error, UnavailableError)
    assert "if it speaks TLS, write https://" in error.message


async def test_tls_to_a_port_of_plain_text_is_told(kind: str, files: Files) -> None:
    async with serving(kind, files, is_tls=False) as address:
        error = await failure(f"https://{address}", Tls(files.ca))
    # One says so; the other waits for the end of what it takes for a head, as a busy server of TLS would.
    assert isinstance(error, ConfigurationError if kind == "grpcio" else UnavailableError)
    assert "leave out https://" in error.message


async def test_a_missing_client_certificate_is_told(kind: str, files: Files) -> None:
    async with serving(kind, files, is_mutual=True) as address:
        for tls in (Tls(files.ca), Tls(files.ca, files.strange_client.certificate, files.strange_client.key)):
            error = await failure(address, tls)
            assert isinstance(error, ConfigurationError | UnavailableError)
            assert "asks for a client certificate" in error.message
            assert "Tls(certificate=FILE, key=FILE)" in error.message


async def test_a_server_of_http1_alone_is_told() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 The plain HTTP request was sent to HTTPS port\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        error = await failure(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert isinstance(error, ConfigurationError)
    assert "does not speak gRPC" in error.message


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("https://127.0.0.1:1", "Connection refused"),
        ("unix:/no/such/socket", "No such file"),
        ("host.invalid:1", "lookup failed"),
    ],
)
async def test_where_nobody_is_is_told_with_the_cause(address: str, cause: str) -> None:
    error = await failure(address)
    assert isinstance(error, UnavailableError)
    assert (error.message, error.reason) == (f"no server answers at {address}", "UNAVAILABLE")
    assert cause in error.cause


async def test_the_proxy_that_was_tried_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    error = await failure("192.0.2.1:8081")
    assert error.message.startswith("no server answers at 192.0.2.1:8081 by the proxy of http_proxy=http://127.0.0.1:1")


async def test_this_machine_is_reached_whatever_proxy_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for at in ("127.0.0.1:0", f"unix:{tmp_path}/socket"):
        async with on_h2corn(at) as (address, _):
            await ask(address)
            await ask(address.replace("127.0.0.1", "localhost"))


def broken(path: Path) -> Path:
    path.write_text("no certificate")
    return path


async def test_files_that_cannot_be_used_are_named_before_anything_is_sent(files: Files, tmp_path: Path) -> None:
    rubbish, pair = broken(tmp_path / "rubbish"), files.client
    wrong = {
        "rubbish is no PEM file of certificates": Tls(rubbish),
        "missing is no PEM file of certificates (No such file": Tls(tmp_path / "missing"),
        "are no PEM files of a certificate and its key": Tls(None, pair.certificate, rubbish),
        "KEY_VALUES_MISMATCH": Tls(None, pair.certificate, files.server.key),
        "are given together": Tls(None, pair.certificate),
    }
    for words, tls in wrong.items():
        with pytest.raises(ConfigurationError) as caught:
            Client("https://127.0.0.1:1", tls=tls)
        assert words in caught.value.message


class Proxy:
    """A proxy of HTTP whose every tunnel leads to one server; keeps where its clients meant to go."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.partition(":")
        self.asked: list[bytes] = []
        self._pumps: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split()[1])
        from_server, to_server = await asyncio.open_connection(self._host, int(self._port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for pump in (self._pump(reader, to_server), self._pump(from_server, writer)):
            self._pumps.add(asyncio.create_task(pump))
        await asyncio.wait(self._pumps)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


@asynccontextmanager
async def proxying(address: str) -> AsyncIterator[tuple[str, Proxy]]:
    proxy = Proxy(address)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", proxy


async def test_another_machine_is_reached_by_the_proxy_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, files: Files
) -> None:
    async with serving("h2corn", files) as address, proxying(address) as (url, proxy):
        monkeypatch.setenv("https_proxy", url)
        await ask("https://model.invalid:8443", Tls(files.ca, server_name="localhost"))
        assert proxy.asked == [b"model.invalid:8443"]
        monkeypatch.setenv("no_proxy", "model.invalid")
        error = await failure("https://model.invalid:8443", Tls(files.ca))
        assert error.message == "no server answers at https://model.invalid:8443"
        monkeypatch.delenv("no_proxy")
        async with AsyncClient("https://model.invalid:8443", proxy=False) as client:
            with pytest.raises(UnavailableError):
                await client.models()
    assert len(proxy.asked) == 1
