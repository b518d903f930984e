"""Proxies in front: what those that are trusted say of a request, and the path below which the server stands.

Anybody can send ``X-Forwarded-…``. So these fields count only where the connection comes from a proxy that a setting
names, and of a chain of proxies only as far as each is named.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from tidegate.config import UNIX_PEERS, Settings, parse_root_path
from tidegate.transports.asgi import Application, Receive, Scope, Send

_SCHEMES = frozenset({"http", "https", "ws", "wss"})
_FIELDS = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-prefix"})


class Client(NamedTuple):
    """A client's address; port 0 where a proxy does not tell it."""

    host: str
    port: int


def behind_proxies(application: Application, settings: Settings) -> Application:
    """Return the application as it is reached through proxies.

    Its requests have the client's address and the scheme that trusted proxies tell, and as ``root_path`` the prefix
    that a trusted proxy tells, else the setting's. Whether a proxy leaves the prefix in the path or takes it away does
    not matter: ``path`` is without it.
    """
    root_path, trusted = settings.root_path or "", settings.trusted_proxy or ()
    if not root_path and not trusted:
        return application
    peers = _Peers(trusted)

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        changed = {**scope, "root_path": root_path}  # the server goes on using its own
        if peers.trust(scope["client"][0] if scope.get("client") else None):
            _believe(changed, peers)
        _remove_prefix(changed)
        await application(changed, receive, send)

    return behind


class _Peers:
    """The peers that are believed."""

    def __init__(self, trusted: Collection[str]) -> None:
        networks = [ip_network(each) for each in trusted if each != UNIX_PEERS]
        is_unix_trusted = UNIX_PEERS in trusted

        @functools.lru_cache(1024)
        def trust(host: str | None) -> bool:
            if host is None:
                return is_unix_trusted
            address = _parse_host(host)
            return address is not None and any(address in network for network in networks)

        self.trust = trust


def _believe(scope: Scope, peers: _Peers) -> None:
    fields: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in _FIELDS:
            before = fields.get(name)
            text = value.decode("latin-1")
            fields[name] = text if before is None else f"{before},{text}"
    num_hops = 0
    for each in reversed(fields.get(b"x-forwarded-for", "").split(",")):
        client = _parse_client(each)
        if client is None:  # a word like "unknown", or nothing: whoever said so is all that is known
            break
        num_hops += 1
        scope["client"] = client
        if not peers.trust(client.host):
            break
    schemes = [each.strip().lower() for each in fields.get(b"x-forwarded-proto", "").split(",")]
    # Proxies that add to this field, rather than replace it, add to both.
    scheme = schemes[-max(num_hops, 1)] if num_hops <= len(schemes) else schemes[0]
    if scheme in _SCHEMES:
        plain, secure = ("ws", "wss") if scope["type"] == "websocket" else ("http", "https")
        scope["scheme"] = secure if scheme in {"https", "wss"} else plain
    if b"x-forwarded-prefix" in fields:
        prefixes = [each.strip().rstrip("/") for each in fields[b"x-forwarded-prefix"].split(",")]
        with contextlib.suppress(ValueError):  # links made of what is none might lead elsewhere
            scope["root_path"] = parse_root_path("".join(prefixes))


def _parse_client(text: str) -> Client | None:
    """Read ``ADDRESS``, ``IPV4:PORT`` or ``[IPV6]:PORT``; None for what is none of them."""
    text = text.strip().strip('"')
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    address = _parse_host(host)
    if address is None:
        return None
    return Client(str(address), int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0)


def _parse_host(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    # A socket that takes IPv4 and IPv6 tells IPv4's addresses so.
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _remove_prefix(scope: Scope) -> None:
    root_path, path = scope["root_path"], scope["path"]
    if root_path and (path == root_path or path.startswith(f"{root_path}/")):
        scope["path"] = path[len(root_path) :] or "/"
        raw, raw_root = scope.get("raw_path"), root_path.encode()
        if raw is not None and raw.startswith(raw_root):
            scope["raw_path"] = raw[len(raw_root) :] or b"/"
