"""Addresses as users write them: what they mean, whom they stay with, and which are none."""

from __future__ import annotations

from typing import Any

import pytest

from tidegate.client.endpoint import Endpoint, parse_endpoint
from tidegate.errors import InvalidInputError

READ = {
    "127.0.0.1:8081": ("127.0.0.1:8081", "http://127.0.0.1:8081"),
    "model.example:8081": ("model.example:8081", "http://model.example:8081"),
    "[::1]:8081": ("[::1]:8081", "http://[::1]:8081"),
    "http://model.example:8081/": ("model.example:8081", "http://model.example:8081"),
    "http://model.example": ("model.example:80", "http://model.example:80"),
    "https://model.example": ("model.example:443", "https://model.example:443"),
    "https://[2001:db8::1]:8443": ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
    "unix:/run/tidegate.sock": ("unix:/run/tidegate.sock", "http://localhost"),
    "unix:tidegate.sock": ("unix:tidegate.sock", "http://localhost"),
    "unix-abstract:tidegate": ("unix-abstract:tidegate", "http://localhost"),
}


@pytest.mark.parametrize("address", READ)
def test_an_address_says_where_and_how(address: str) -> None:
    endpoint = parse_endpoint(address)
    assert (endpoint.target, endpoint.url()) == READ[address]
    assert endpoint.is_tls == address.startswith("https")
    assert str(endpoint) == address


def test_a_unix_socket_has_a_path_and_an_abstract_one_a_name_of_its_own() -> None:
    assert parse_endpoint("unix:/run/a").path == "/run/a"
    assert parse_endpoint("unix:///run/a").path == "/run/a"
    assert parse_endpoint("unix-abstract:a").path == "\0a"


def test_tls_may_be_said_beside_an_address_without_a_scheme() -> None:
    assert parse_endpoint("model.example:1", is_tls=True).url("ws") == "wss://model.example:1"
    assert not parse_endpoint("model.example:1", is_tls=False).is_tls


@pytest.mark.parametrize(
    "address",
    [
        "", "host", "host:", ":8081", "host:0", "host:65536", "host:port", "http://", "http://host:1/path",
        "https://user:word@host:1", "http://host:1?a=b", "http://host:1#a", "ftp://host:1", "grpc://host:1", "ho st:1",
        "höst:1", "host:1\n", "[::1:1", "unix:", "unix:a\0b", "a\ud83d:1", 8081, None,
    ],
)  # fmt: skip
def test_what_is_no_address_is_told_with_what_is(address: Any) -> None:
    with pytest.raises(InvalidInputError, match="address must be HOST:PORT, http://HOST:PORT"):
        parse_endpoint(address)


@pytest.mark.parametrize(
    ("address", "is_tls"), [("http://host:1", True), ("https://host:1", False), ("unix:/run/a", True)]
)
def test_an_address_that_contradicts_tls_is_refused(address: str, is_tls: bool) -> None:
    with pytest.raises(InvalidInputError, match="TLS"):
        parse_endpoint(address, is_tls=is_tls)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1", "127.9.8.7:1", "localhost:1", "LOCALHOST:1", "localhost.:1", "a.localhost:1",
        "[::1]:1", "[::ffff:127.0.0.1]:1", "0.0.0.0:1", "[::]:1", "https://localhost", "unix:/run/a", "unix-abstract:a",
        "dns:///localhost:1", "dns:localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1",
    ],
)  # fmt: skip
def test_this_machine_is_known(address: str) -> None:
    assert parse_endpoint(address).is_here


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:1", "model.example:1", "localhost.example:1", "[2001:db8::1]:1", "dns:///a.example:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
    ],
)  # fmt: skip
def test_others_are_not_taken_for_it(address: str) -> None:
    assert not parse_endpoint(address).is_here


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.example:3128")
    assert parse_endpoint("model.example:1").proxy == "http_proxy=http://***@proxy.example:3128"
    assert parse_endpoint("127.0.0.1:1").proxy is None
    monkeypatch.setenv("no_proxy", "other, .example")
    assert parse_endpoint("model.example:1").proxy is None


def test_without_a_proxy_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert Endpoint("a", "a:1", "a", 1).proxy is None
