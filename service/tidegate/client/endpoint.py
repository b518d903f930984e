"""Addresses of servers, as users write them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from tidegate.errors import InvalidInputError, did_you_mean
from tidegate.loopback import is_this_machine

FORMS = "HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:PATH"
_HOST = re.compile(r"[0-9A-Za-z._:%-]+")
_PORTS = {"http": 80, "https": 443}
_UNIX = ("unix:", "unix-abstract:")
_TARGET = re.compile(r"(?:dns|ipv4|ipv6):(?://[^/]*/)?(?P<addresses>.+)")
"""What gRPC alone understands (its doc/naming.md): a name whose addresses share the load, or a list of addresses."""
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is.

    Attributes:
        address: As its user wrote it.
        target: As gRPC takes it.
        host: A name or an address, without brackets; "" of a Unix socket, and where only gRPC understands the address.
        port: 0 likewise.
        path: Of a Unix socket, None elsewhere. One that begins with NUL is no path (unix(7)).
        is_tls: Whether TLS is spoken.
        is_here: Whether what is sent stays on this machine, for certain.
    """

    address: str
    target: str
    host: str = ""
    port: int = 0
    path: str | None = None
    is_tls: bool = False
    is_here: bool = False

    def __str__(self) -> str:
        return self.address

    @property
    def authority(self) -> str:
        """``HOST:PORT`` of a request over HTTP, the host of IPv6 in brackets."""
        return "localhost" if self.path is not None else self.target

    def url(self, scheme: str = "http") -> str:
        """The server's root over HTTP; of a Unix socket its client has to know the path."""
        return f"{scheme}{'s' if self.is_tls else ''}://{self.authority}"

    @property
    def proxy(self) -> str | None:
        """The variable by whose proxy gRPC connects, and what it says; None without one."""
        if self.is_here or not self.host:
            return None
        exceptions = next((os.environ[name] for name in _EXCEPTIONS if name in os.environ), "")
        name = next((name for name in _PROXIES if os.environ.get(name)), None)
        if name is None or any(self.host.endswith(end.strip()) for end in exceptions.split(",") if end.strip()):
            return None
        return f"{name}={re.sub(r'//.*@', '//***@', os.environ[name])}"


def parse_endpoint(address: str, *, is_tls: bool | None = None) -> Endpoint:
    """Read an address; ``is_tls`` is what its user says beside it, None: nothing.

    Raises:
        InvalidInputError: It is none, or contradicts ``is_tls``.
    """
    if not isinstance(address, str):
        raise InvalidInputError(f"address must be {FORMS}, not {address!r:.60}")
    if address.startswith(_UNIX):
        return _unix(address, is_tls)
    if (match := _TARGET.fullmatch(address)) is not None:
        hosts = [urlsplit(f"//{each}").hostname or "" for each in match["addresses"].split(",")]
        return Endpoint(address, address, is_tls=bool(is_tls), is_here=all(map(is_this_machine, hosts)))
    scheme, separator, _ = address.partition("://")
    try:
        parts = urlsplit(address if separator else f"//{address}")
        host, port = parts.hostname or "", parts.port
        is_one = _HOST.fullmatch(host) and address.isprintable() and parts.username is None and parts.path in {"", "/"}
        if not is_one or parts.query or parts.fragment or (separator and scheme not in _PORTS):
            raise ValueError
        port = _PORTS[scheme] if port is None and separator else port
        if not port:
            raise ValueError
    except ValueError:
        raise InvalidInputError(
            f"address must be {FORMS}, not {_without_password(address)!r:.60}{_meant(address)}"
        ) from None
    if separator and is_tls is not None and is_tls != (scheme == "https"):
        with_or_without = "without TLS, but TLS is asked for" if is_tls else "with TLS, but tls=False says without"
        raise InvalidInputError(f"{address} is an address {with_or_without}")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Endpoint(
        address, target, host, port, is_tls=bool(is_tls) or scheme == "https", is_here=is_this_machine(host)
    )


def _meant(address: str) -> str:
    scheme, separator, _ = address.partition("://")
    if not separator:
        scheme, separator, rest = address.partition(":")
        return did_you_mean(scheme + separator, _UNIX) if "/" in rest else ""
    if (scheme := scheme.lower()) in _PORTS:
        return ""
    meant = {"grpc": "http", "grpcs": "https"}.get(scheme)
    return did_you_mean(scheme, _PORTS) if meant is None else f": did you mean '{meant}'?"


def _without_password(address: str) -> str:
    return f"***@{address.rpartition('@')[2]}" if "@" in address else address


def _unix(address: str, is_tls: bool | None) -> Endpoint:
    scheme, _, path = address.partition(":")
    if scheme == "unix" and path.startswith("//"):
        path = path.removeprefix("//")
    if not path or "\0" in path:
        raise InvalidInputError(f"address must be {FORMS}, not {address!r:.60}")
    if is_tls:
        raise InvalidInputError(f"{address} is a Unix socket, which speaks plain text: leave TLS out")
    return Endpoint(address, address, path=path if scheme == "unix" else f"\0{path}", is_here=True)
