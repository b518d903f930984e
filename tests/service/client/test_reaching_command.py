"""The verbs and how they reach a server: TLS, sockets, tokens, proxies, and one line where it does not go."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.certificates import Authority, Pair
from tests.servers import COMMAND, bare_environment
from tests.service.client.reach import on_h2corn
from tidegate.cli import app
from tidegate.transports.h2corn_server import TlsFiles

LIST = ("sessions", "list", "--json")
TOP = ("top", "--json", "--interval", "0.1")
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.sign("/CN=server", "server")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pair:
    return authority.sign("/CN=ann", "client")


async def run(*arguments: str, **variables: str) -> Result:
    # The server runs in the test's event loop, so the command runs in a thread.
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=variables)


async def printed(*arguments: str, **variables: str) -> object:
    result = await run(*arguments, **variables)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


async def failure(*arguments: str, **variables: str) -> str:
    result = await run(*arguments, **variables)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    return result.stderr.removeprefix("tidegate: ").rstrip()


async def test_tls_and_certificates_are_given_by_options(authority: Authority, server: Pair, client: Pair) -> None:
    ca = str(authority.own.certificate)
    shown = ("--ca", ca, "--client-cert", str(client.certificate), "--client-key", str(client.key))
    async with on_h2corn(tls=TlsFiles(server.certificate, server.key, authority.own.certificate)) as (address, _):
        for name in (address, f"https://{address}"):
            assert await printed(*LIST, "--server", name, *shown) == []
            assert await printed(*TOP, "--http", name, *shown)
        assert "asks for a client certificate" in await failure(*LIST, "--server", address, "--tls", "--ca", ca)
        assert "asks for a client certificate" in await failure(*TOP, "--http", address, "--tls", "--ca", ca)


async def test_tls_certificates_and_a_token_are_given_by_variables(
    authority: Authority, server: Pair, client: Pair
) -> None:
    async with on_h2corn(tls=TlsFiles(server.certificate, server.key, authority.own.certificate)) as (address, seen):
        variables = {
            "TIDEGATE_SERVER": address,
            "TIDEGATE_SERVER_HTTP": address,
            "TIDEGATE_TLS": "1",
            "TIDEGATE_CA": str(authority.own.certificate),
            "TIDEGATE_CLIENT_CERT": str(client.certificate),
            "TIDEGATE_CLIENT_KEY": str(client.key),
            "TIDEGATE_TOKEN": "tg_key",
        }
        assert await printed(*LIST, **variables) == []
        assert await printed(*TOP, **variables)
    assert {head["authorization"] for head in seen.heads} == {"Bearer tg_key"}


async def test_files_in_a_profile_leave_plain_addresses_plain(authority: Authority, tmp_path: Path) -> None:
    variables = {"TIDEGATE_CA": str(authority.own.certificate)}
    async with on_h2corn() as (address, _), on_h2corn(f"unix:{tmp_path}/socket") as (path, _):
        for name in (f"http://{address}", path):
            assert await printed(*LIST, "--server", name, **variables) == []
            assert await printed(*TOP, "--http", name, **variables)


async def test_this_machine_is_reached_whatever_proxy_the_environment_names(tmp_path: Path) -> None:
    for proxy in ("http://127.0.0.1:1", "socks5://127.0.0.1:1"):
        variables = dict.fromkeys(PROXIES, proxy)
        for at in ("127.0.0.1:0", f"unix:{tmp_path}/socket"):
            async with on_h2corn(at) as (address, _):
                assert await printed(*LIST, "--server", address, **variables) == []
                assert await printed(*TOP, "--http", address, **variables)


async def test_a_proxy_that_does_not_lead_anywhere_is_named() -> None:
    variables = dict.fromkeys(PROXIES, "http://127.0.0.1:1")
    assert "grpc_proxy=http://127.0.0.1:1" in await failure(*LIST, "--server", "192.0.2.1:1", **variables)
    variables = dict.fromkeys(PROXIES, "socks9://127.0.0.1:1")
    assert "names a proxy that cannot be used" in await failure(*TOP, "--http", "192.0.2.1:1", **variables)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--server", "nowhere"), "--server: address must be HOST:PORT, http://HOST:PORT, https"),
        (("--server", "caf\udce9:1"), "--server: address must be HOST:PORT"),
        (("--server", "http://127.0.0.1:1", "--tls"), "an address without TLS, but TLS is asked for"),
        (("--server", "127.0.0.1:1", "--ca", "/no/such"), "/no/such is no PEM file of certificates (No such file"),
        (("--server", "127.0.0.1:1", "--client-cert", "a"), "a client certificate and its key are given together"),
        (("--server", "192.0.2.1:1"), "a token would go to 192.0.2.1:1 in plain text"),
    ],
)
async def test_what_does_not_go_together_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    assert words in await failure(*LIST, *arguments, TIDEGATE_TOKEN="tg_key")  # noqa: S106


async def test_nothing_but_the_line_is_written_where_tls_does_not_come_about(server: Pair) -> None:
    async with on_h2corn(tls=TlsFiles(server.certificate, server.key)) as (address, _):
        with_tls, without = f"https://{address}", address
        for verb, words in (
            ((*LIST, "--server", with_tls), "is not trusted"),
            ((*LIST, "--server", without), "if it speaks TLS, write https://"),
            ((*TOP, "--http", with_tls), "is not trusted"),
            (("bench", "m", "--server", with_tls), "is not trusted"),
        ):
            process = await asyncio.create_subprocess_exec(
                *COMMAND, *verb, stderr=asyncio.subprocess.PIPE, env=bare_environment()
            )
            _, err = await process.communicate()
            assert (process.returncode, err.count(b"\n")) == (2, 1), err
            assert words in err.decode()
