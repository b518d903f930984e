"""What settings make of servers: limits, certificates, their renewal."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tidegate.config import Settings, load_settings
from tidegate.errors import ConfigurationError
from tidegate.transports.asgi import Receive, Scope, Send
from tidegate.transports.listeners import listening
from tidegate.transports.servers import Servers, limits_of, tls_files


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def settings(authority: Authority, tmp_path: Path) -> Settings:
    authority.sign("/CN=first", "server")
    return load_settings({"tls_cert": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"})


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


def test_settings_are_limits() -> None:
    given = {
        "max_message_mb": 2, "max_url_kb": 3, "max_connections": 5, "max_streams": 7, "stream_window_kb": 128,
        "handshake_timeout": 11, "keep_alive": 13, "stall_timeout": 17, "ping_interval": 19,
    }  # fmt: skip
    limits = limits_of(load_settings(given), 1)
    assert (limits.message, limits.connections, limits.streams) == (2 << 20, 5, 7)
    assert (limits.window, limits.handshake, limits.idle) == (128 << 10, 11, 13)
    assert (limits.stalled, limits.ping) == (17, 19)
    assert (limits.body > limits.message, limits.url > 3 << 10, limits.head > 64 << 10) == (True, True, True)


def test_without_a_certificate_there_is_no_tls() -> None:
    assert tls_files(load_settings({})) is None


@pytest.mark.parametrize("given", ["tls_cert", "tls_key", "tls_client_ca"])
def test_a_certificate_and_its_key_come_together(given: str, tmp_path: Path) -> None:
    flag = "--" + given.replace("_", "-")
    with pytest.raises(ConfigurationError, match=f"^{flag}: TLS needs both --tls-cert and --tls-key$"):
        tls_files(load_settings({given: tmp_path / "file"}))


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca"])
def test_a_file_that_is_not_there_is_named(settings: Settings, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="absent: No such file or directory"):
        tls_files(settings.model_copy(update={name: tmp_path / "absent"}))


@pytest.mark.parametrize(
    ("name", "told"),
    [("tls_cert", "--tls-cert: .*other with"), ("tls_key", "--tls-cert: .*with"), ("tls_client_ca", "no certif")],
)
def test_a_file_that_is_no_pem_is_told(settings: Settings, tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "other").write_text("no PEM")
    with pytest.raises(ConfigurationError, match=told):
        tls_files(settings.model_copy(update={name: tmp_path / "other"}))


def test_a_key_of_another_certificate_is_told(settings: Settings, authority: Authority) -> None:
    with pytest.raises(ConfigurationError, match="key values mismatch"):
        tls_files(settings.model_copy(update={"tls_key": authority.own.key}))


class Watched:
    """Servers of one port whose files are looked at when the test says so."""

    def __init__(self, servers: Servers, port: int, authority: Authority) -> None:
        self.servers = servers
        self._port = port
        self._context = ssl.create_default_context(cafile=authority.own.certificate)
        self._turns: asyncio.Queue[None] = asyncio.Queue()
        self._looked = asyncio.Event()

    async def pause(self) -> None:
        self._looked.set()
        await self._turns.get()

    async def look(self) -> None:
        """Let the files be looked at once."""
        await self._looked.wait()
        self._looked.clear()
        self._turns.put_nowait(None)
        await self._looked.wait()

    async def subject(self) -> str:
        """Return whom the certificate names that a new connection is shown."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._context)
        shown: Any = writer.get_extra_info("peercert")
        writer.close()
        return str(shown["subject"][0][0][1])


@pytest.fixture
async def watched(settings: Settings, authority: Authority) -> AsyncIterator[Watched]:
    with listening("http", "127.0.0.1:0") as listener:
        servers = Servers(settings, 1)
        servers.add(listener, answer, lambda _: False)
        await servers.start()
        watched = Watched(servers, listener.getsockname()[1], authority)
        watching = asyncio.create_task(servers.renew_when_changed(watched.pause))
        yield watched
        watching.cancel()
        await servers.stop(0)


async def test_files_that_change_are_taken_for_new_connections(watched: Watched, authority: Authority) -> None:
    await watched.look()
    assert await watched.subject() == "first"
    authority.sign("/CN=second", "server")
    assert await watched.subject() == "first"
    await watched.look()
    assert await watched.subject() == "second"


async def test_halfway_through_a_renewal_the_former_certificate_stays(
    watched: Watched, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority.sign("/CN=second", "next")
    (tmp_path / "next.pem").replace(tmp_path / "server.pem")
    with caplog.at_level(logging.ERROR):
        await watched.look()
    assert "the certificate is not renewed, the former one stays" in caplog.text
    assert await watched.subject() == "first"
    (tmp_path / "next.key").replace(tmp_path / "server.key")
    await watched.look()
    assert await watched.subject() == "second"


async def test_a_file_that_is_away_for_a_moment_is_waited_for(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "server.pem").rename(tmp_path / "away")
    await watched.look()
    assert await watched.subject() == "first"


async def test_files_that_have_not_changed_make_no_new_server(settings: Settings) -> None:
    with listening("http", "127.0.0.1:0") as listener:
        servers = Servers(settings, 1)
        servers.add(listener, answer, lambda _: False)
        await servers.start()
        before = asyncio.all_tasks()
        await servers.renew()
        assert asyncio.all_tasks() == before
        await servers.stop(0)


async def test_without_tls_there_is_nothing_to_renew() -> None:
    await Servers(load_settings({}), 1).renew()
