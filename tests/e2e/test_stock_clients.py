"""Clients and proxies that anybody has: curl, httpx, h2load, wrk, Node, Java, nginx.

Envoy is test_envoy.py's, gRPC-Web in Node test_clients_of_node.py's, browsers test_http_docs.py's.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from websockets.sync.client import unix_connect

from tests.bundles import write_tiny_bundle
from tests.certificates import Authority
from tests.programs import program
from tests.servers import RunningServer, serving
from tidegate.client import Client

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
PREDICT = "/v1/models/tiny:predict"
GENERATE = "/v1/models/tiny:generate"
LONG = {"sequences": [{"text": "Hello" * 300_000}]}
"""So large a body that curl asks whether to send it (``Expect: 100-continue``)."""


class House(NamedTuple):
    """A server that speaks plain text, one that speaks TLS, and who signed the latter's certificate."""

    plain: RunningServer
    tls: RunningServer
    signer: Path

    def url(self, scheme: str) -> str:
        return (self.tls if scheme == "https" else self.plain).http


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    write_tiny_bundle(folder / "bundles")
    authority = Authority(folder)
    own = authority.sign("/CN=localhost", "server")
    secure = ("--tls-cert", str(own.certificate), "--tls-key", str(own.key))
    with serving(folder / "bundles") as plain, serving(folder / "bundles", *secure) as tls:
        yield House(plain, tls, authority.own.certificate)


def run(*command: str, text: str | None = None) -> str:
    """What a program prints; it must end well."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("scheme", "flag", "version"),
    [
        ("http", "--http1.1", "1.1"),
        ("http", "--http2", "1.1"),  # an offer of h2c, which is not taken up and loses nothing
        ("http", "--http2-prior-knowledge", "2"),
        ("https", "--http1.1", "1.1"),
        ("https", "--http2", "2"),
    ],
)
def test_curl(house: House, scheme: str, flag: str, version: str) -> None:
    curl = (program("curl"), "--silent", "--show-error", "--no-buffer", "--cacert", str(house.signer), flag)
    told = ("--write-out", "\n%{http_version} %{http_code}")
    for body, status in ({"sequences": [{"text": "Hello"}]}, "200"), (LONG, "413"):
        out = run(*curl, *told, "--data-binary", "@-", house.url(scheme) + PREDICT, text=json.dumps(body))
        reply, _, end = out.rpartition("\n")
        assert end == f"{version} {status}"
        assert ("predictions" in json.loads(reply)) is (status == "200")
    events = run(
        *curl, "--header", "Accept: text/event-stream", "--data", '{"text": "A", "max_tokens": 3}',
        house.url(scheme) + GENERATE,
    )  # fmt: skip
    assert re.findall("^event: (.*)$", events, re.MULTILINE) == ["token"] * 3 + ["done"]


@pytest.mark.parametrize(("scheme", "http1"), [("http", False), ("https", True)])
def test_httpx_over_http_2(house: House, scheme: str, *, http1: bool) -> None:
    """Plain text by prior knowledge, TLS by ALPN."""
    context = ssl.create_default_context(cafile=house.signer)
    with httpx.Client(base_url=house.url(scheme), http1=http1, http2=True, verify=context) as client:
        reply = client.post(PREDICT, json={"sequences": [{"text": "Hello"}]})
        assert (reply.http_version, reply.json()["predictions"][0]["length"]) == ("HTTP/2", 5)
        head = {"Accept": "text/event-stream"}
        with client.stream("POST", GENERATE, json={"text": "A", "max_tokens": 3}, headers=head) as events:
            assert [line for line in events.iter_lines() if line.startswith("event")][-1] == "event: done"


@pytest.mark.parametrize(("scheme", "flags"), [("http", ()), ("http", ("--h1",)), ("https", ())])
def test_h2load(house: House, tmp_path: Path, scheme: str, flags: tuple[str, ...]) -> None:
    """Many streams on each of a few connections."""
    body = tmp_path / "body"
    body.write_text(json.dumps({"sequences": [{"text": "Hello"}]}))
    count = ("--requests=400", "--clients=4", "--max-concurrent-streams=20", f"--data={body}")
    told = run(program("h2load"), *flags, *count, house.url(scheme) + PREDICT)
    assert re.search(r"status codes: (\d+) 2xx", told)[1] == "400", told  # type: ignore[index]


def test_wrk(house: House) -> None:
    told = run(program("wrk"), "--threads=1", "--connections=8", "--duration=1s", house.plain.http + "/v1/models/tiny")
    assert "Non-2xx" not in told
    assert "Socket errors" not in told
    assert int(re.search(r"(\d+) requests in", told)[1]) > 0, told  # type: ignore[index]


def test_node(house: House) -> None:
    """Its fetch and WebSocket, and its client of HTTP/2."""
    script = str(CLIENTS / "http.mjs")
    out = run(
        program("node"), "--no-warnings", "--experimental-websocket", script, house.plain.http, house.tls.http,
        str(house.signer),
    )  # fmt: skip
    assert json.loads(out) == {"predicted": 5, "events": ["token"] * 3 + ["done"], "positions": [1, 2, 3], "http2": 5}


def test_java(house: House) -> None:
    """Its HttpClient, which offers h2c with each first request over plain text, and its WebSocket."""
    found = run(program("java"), str(CLIENTS / "Http.java"), house.plain.http).split()
    assert found == ["200", "predictions", "200", "predictions", "done", "position"]


class Nginx(NamedTuple):
    """Unix sockets of a running nginx."""

    http: Path
    grpc: Path


@pytest.fixture(params=["http", "https"])
def nginx(house: House, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nginx]:
    """nginx by the configuration that docs/http.md shows, before the server that speaks plain text or TLS."""
    server, scheme = (house.plain, "grpc") if request.param == "http" else (house.tls, "grpcs")
    (servers,) = re.findall(r"^```nginx\n(.*?)^```", (ROOT / "docs/http.md").read_text(), re.DOTALL | re.MULTILINE)
    http, grpc = tmp_path / "http", tmp_path / "grpc"
    for written, meant in (
        ("listen 80;", f"listen unix:{http};"),
        ("listen 81 http2;", f"listen unix:{grpc} http2;"),
        ("http://127.0.0.1:8080", server.http),
        ("grpc://127.0.0.1:8081", f"{scheme}://{server.grpc.removeprefix('https://')}"),
    ):
        assert written in servers
        servers = servers.replace(written, meant)
    places = "".join(f"{name}_temp_path {tmp_path};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config, pid = tmp_path / "nginx.conf", tmp_path / "pid"
    config.write_text(f"events {{}}\npid {pid};\nhttp {{\naccess_log off;\n{places}{servers}}}\n")
    command = (program("nginx"), "-e", "stderr", "-c", str(config))
    subprocess.run(command, check=True, timeout=30)  # returns when it listens
    try:
        yield Nginx(http, grpc)
    finally:
        subprocess.run([*command, "-s", "stop"], check=True, timeout=30)


def test_nginx_passes_everything_on(nginx: Nginx) -> None:
    with contextlib.ExitStack() as stack:
        grpc = stack.enter_context(Client(f"unix:{nginx.grpc}"))
        http = stack.enter_context(
            httpx.Client(transport=httpx.HTTPTransport(uds=str(nginx.http)), base_url="http://n")
        )
        session = stack.enter_context(grpc.open("tiny"))
        with session.stream() as stream:
            assert stream.step("H").position == 1
        assert http.post(f"/v1/sessions/{session.id}:step", json={"text": "e"}).json()["position"] == 2
        with unix_connect(str(nginx.http), f"ws://n/v1/sessions/{session.id}/stream") as frames:
            frames.send('{"text": "l"}')
            reply: Any = json.loads(frames.recv(30))
            assert reply["position"] == 3
        head = {"Accept": "text/event-stream"}
        with http.stream("POST", GENERATE, json={"text": "A", "max_tokens": 100_000}, headers=head) as events:
            assert next(events.iter_lines()) == "event: token"  # and not when all is generated
