"""What proxies say of a request, and of whom it is believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.service.transports.asgi import Exchange, http_scope
from tidegate.config import load_settings
from tidegate.transports.asgi import Receive, Scope, Send
from tidegate.transports.proxies import behind_proxies

TRUSTED = "10.0.0.0/8, 2001:db8::/32"
PROXY = ("10.1.2.3", 50000)
STRANGER = ("192.0.2.1", 50000)


async def seen(
    headers: Sequence[tuple[str, str]],
    client: tuple[str, int] | None = PROXY,
    path: str = "/livez",
    settings: dict[str, Any] | None = None,
    **fields: Any,
) -> Scope:
    """The scope that the application gets."""
    scopes: list[Scope] = []

    async def application(scope: Scope, _: Receive, _send: Send) -> None:
        scopes.append(scope)

    found = load_settings({"trusted_proxy": TRUSTED} if settings is None else settings)
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = http_scope(path, raw, client=client, scheme="http", raw_path=path.encode(), **fields)
    before = dict(scope)
    await Exchange(scope).run(behind_proxies(application, found))
    assert scope == before, "the server goes on using its own"
    return scopes[0]


# ---- the client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.9", ("203.0.113.9", 0)),
        ("203.0.113.9:4711", ("203.0.113.9", 4711)),
        ("2001:4860::8", ("2001:4860::8", 0)),
        ("[2001:4860::8]:4711", ("2001:4860::8", 4711)),
        ('"[2001:4860::8]"', ("2001:4860::8", 0)),
        ("::ffff:203.0.113.9", ("203.0.113.9", 0)),
        ("1.1.1.1, 203.0.113.9", ("203.0.113.9", 0)),
        ("1.1.1.1, 203.0.113.9, 10.9.9.9", ("203.0.113.9", 0)),
        ("203.0.113.9, 2001:db8::1 ,10.9.9.9", ("203.0.113.9", 0)),
        ("10.7.7.7, 10.9.9.9", ("10.7.7.7", 0)),
        ("unknown", PROXY),
        ("203.0.113.9, unknown", PROXY),
        ("203.0.113.9, unknown, 10.9.9.9", ("10.9.9.9", 0)),
        ("", PROXY),
        (",", PROXY),
        ("203.0.113.9:port", ("203.0.113.9", 0)),
        ("999.0.0.1", PROXY),
        ("[203.0.113.9", ("203.0.113.9", 0)),
        ("caf\u00e9", PROXY),
    ],
)
async def test_the_client_is_the_last_that_no_trusted_proxy_is(forwarded: str, client: tuple[str, int]) -> None:
    assert (await seen([("x-forwarded-for", forwarded)]))["client"] == client


async def test_several_fields_are_one_list() -> None:
    fields = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "10.9.9.9")]
    assert (await seen(fields))["client"] == ("203.0.113.9", 0)


FORGED = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-proto", "https"), ("x-forwarded-prefix", "/models")]


@pytest.mark.parametrize("client", [STRANGER, ("2001:4860::8", 1), None, ("not an address", 1)])
async def test_strangers_are_believed_nothing(client: tuple[str, int] | None) -> None:
    scope = await seen(FORGED, client)
    assert (scope["client"], scope["scheme"], scope["root_path"]) == (client, "http", "")


async def test_nobody_is_trusted_by_default() -> None:
    scope = await seen(FORGED, settings={})
    assert (scope["client"], scope["scheme"], scope.get("root_path", "")) == (PROXY, "http", "")


async def test_a_proxy_is_known_on_a_socket_that_takes_both_kinds_of_addresses() -> None:
    assert (await seen(FORGED, ("::ffff:10.1.2.3", 1)))["client"] == ("203.0.113.9", 0)


async def test_peers_over_unix_sockets_are_trusted_where_that_is_said() -> None:
    assert (await seen(FORGED, None, settings={"trusted_proxy": ["unix"]}))["client"] == ("203.0.113.9", 0)
    assert (await seen(FORGED, STRANGER, settings={"trusted_proxy": ["unix"]}))["client"] == STRANGER


# ---- the scheme


@pytest.mark.parametrize(
    ("proto", "forwarded", "scheme"),
    [
        ("https", "203.0.113.9", "https"),
        ("HTTPS", "203.0.113.9", "https"),
        ("wss", "203.0.113.9", "https"),
        ("http", "203.0.113.9", "http"),
        ("ftp", "203.0.113.9", "http"),
        ("", "203.0.113.9", "http"),
        ("https", "203.0.113.9, 10.9.9.9", "https"),
        ("https, http", "203.0.113.9, 10.9.9.9", "https"),
        ("https, http", "203.0.113.9", "http"),
        ("https", "", "https"),
    ],
)
async def test_the_scheme_is_the_clients(proto: str, forwarded: str, scheme: str) -> None:
    fields = [("x-forwarded-proto", proto), ("x-forwarded-for", forwarded)]
    assert (await seen(fields))["scheme"] == scheme


async def test_the_scheme_of_a_websocket_is_one_of_its_own() -> None:
    assert (await seen([("x-forwarded-proto", "https")], type="websocket"))["scheme"] == "wss"
    assert (await seen([("x-forwarded-proto", "http")], type="websocket"))["scheme"] == "ws"


# ---- the prefix


@pytest.mark.parametrize("prefix", ["/models", "/models/", " /models"])
@pytest.mark.parametrize("path", ["/livez", "/models/livez"])
async def test_a_prefix_is_taken_off_the_path_where_the_proxy_leaves_it(prefix: str, path: str) -> None:
    scope = await seen([("x-forwarded-prefix", prefix)], path=path)
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/models", "/livez", b"/livez")


@pytest.mark.parametrize(
    ("path", "rest"),
    [("/models", "/"), ("/models/", "/"), ("/modelsx", "/modelsx"), ("/models.v1.S/M", "/models.v1.S/M")],
)
async def test_only_whole_segments_are_a_prefix(path: str, rest: str) -> None:
    assert (await seen([], path=path, settings={"root_path": "/models"}))["path"] == rest


async def test_prefixes_of_several_proxies_follow_each_other() -> None:
    fields = [("x-forwarded-prefix", "/a, /b"), ("x-forwarded-prefix", "/c")]
    assert (await seen(fields))["root_path"] == "/a/b/c"


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "/\\evil.example", "evil", "/a/../b", "/a b", "/v1", "/caf\u00e9", "/a//b"]
)
async def test_a_prefix_that_is_none_is_passed_over(prefix: str) -> None:
    settings = {"trusted_proxy": TRUSTED, "root_path": "/models"}
    assert (await seen([("x-forwarded-prefix", prefix)], settings=settings))["root_path"] == "/models"


async def test_a_trusted_proxys_prefix_goes_before_the_setting() -> None:
    settings = {"trusted_proxy": TRUSTED, "root_path": "/models"}
    assert (await seen([], settings=settings))["root_path"] == "/models"
    assert (await seen([("x-forwarded-prefix", "/other")], settings=settings))["root_path"] == "/other"
    assert (await seen([("x-forwarded-prefix", "/")], settings=settings))["root_path"] == ""
    assert (await seen([("x-forwarded-prefix", "/other")], STRANGER, settings=settings))["root_path"] == "/models"
