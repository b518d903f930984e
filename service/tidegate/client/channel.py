"""How a channel is made, and what goes with each of its calls: the same for the blocking client and asyncio's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

import grpc

from tidegate.client.arguments import argument_error, is_id, is_number
from tidegate.client.endpoint import Endpoint, parse_endpoint
from tidegate.client.tls import Tls
from tidegate.errors import InvalidInputError
from tidegate.wire import SESSION_KEY

KNOCK = "/grpc.health.v1.Health/Check"
"""A method that any server or proxy answers at once, if only by refusing it."""

KEEPALIVE_SECONDS = 20.0

Credentials = str | Callable[[], str] | grpc.CallCredentials
"""A token, who gives one for each call, or gRPC's own kind."""

Metadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]

Pairs = tuple[tuple[str, str | bytes], ...]


class ConnectionOptions(TypedDict, total=False):
    """How a server is reached.

    Attributes:
        tls: Speak TLS; a `Tls` says how. ``https://`` in the address does the same. False says no.
        credentials: A token, or a function that returns one for each call: it is sent as ``authorization: Bearer``.
            Or `grpc.CallCredentials`, which gRPC sends over TLS only.
        metadata: Pairs that go with every call.
        proxy: Whether servers on other machines are reached by the proxy that the environment names (https_proxy, with
            the exceptions in no_proxy). Those on this machine never are. True by default.
        keepalive: Seconds between pings while calls are open, 20 by default; None: there are none. A server that leaves
            one unanswered for 10 s is away.
        insecure: Send a token over plain text to another machine too.
    """

    tls: bool | Tls | None
    credentials: Credentials | None
    metadata: Metadata
    proxy: bool
    keepalive: float | None
    insecure: bool


class ChannelPlan:
    """How a channel to a server is made.

    Attributes:
        endpoint: The server's.
        tls: How TLS is spoken; None: it is not.
        credentials: Of the channel; None: plain text.
        options: Of gRPC's core (grpc/impl/channel_arg_names.h).

    Raises:
        InvalidInputError: An option is not what it may be, or contradicts another.
        ConfigurationError: A file of TLS cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: bool | Tls | None = None,
        credentials: Credentials | None = None,
        metadata: Metadata = (),
        proxy: bool = True,
        keepalive: float | None = KEEPALIVE_SECONDS,
        insecure: bool = False,
    ) -> None:
        if not isinstance(tls, bool | Tls | None):
            raise argument_error(tls=tls)
        self.endpoint = parse_endpoint(address, is_tls=None if tls is None else bool(tls))
        self.tls = (tls if isinstance(tls, Tls) else Tls()) if self.endpoint.is_tls else None
        self.credentials = None if self.tls is None else self.tls.channel_credentials()
        self._token: Callable[..., Any] | None = None
        given: object = credentials
        self._pairs = _checked(metadata)
        if isinstance(given, str):
            self._pairs += (bearer(given),)
        elif isinstance(given, grpc.CallCredentials):
            if self.credentials is None:
                raise InvalidInputError("gRPC sends call credentials over TLS only: write https://…, or give a token")
            self.credentials = grpc.composite_channel_credentials(self.credentials, given)
        elif callable(given):
            self._token = given
        elif given is not None:
            raise argument_error(credentials=given)
        names = [name for name, _ in self._pairs]
        if names.count("authorization") + (self._token is not None) > 1:
            raise InvalidInputError("give the token by credentials or in metadata, not both")
        if "authorization" in names or self._token is not None:
            require_private(self.endpoint, insecure=insecure)
        self.options = _options(self.endpoint, self.tls, keepalive, proxy=proxy)

    def metadata(self, session: str) -> Pairs:
        """What goes with a call: what the user says, and the session that a proxy routes by, where one is named."""
        if not is_id(session):
            raise argument_error(session=session)
        pairs = self._pairs if self._token is None else (*self._pairs, bearer(self._token()))
        return (*pairs, (SESSION_KEY, session)) if session else pairs


def bearer(token: object) -> tuple[str, str]:
    """The field that carries a token.

    Raises:
        InvalidInputError: It is none. The message does not repeat it.
    """
    if not re.fullmatch(r"[!-~]+", token if isinstance(token, str) else ""):
        raise InvalidInputError("a token must be a text of ASCII characters without spaces")
    return "authorization", f"Bearer {token}"


def require_private(endpoint: Endpoint, *, insecure: bool) -> None:
    """A token that others may read is theirs.

    Raises:
        InvalidInputError: What is sent leaves this machine in plain text.
    """
    if not (endpoint.is_tls or endpoint.is_here or insecure):
        raise InvalidInputError(
            f"a token would go to {endpoint} in plain text, for anybody on the way to read: "
            "write https://…, or say insecure=True (--insecure) where something else encrypts"
        )


def _options(endpoint: Endpoint, tls: Tls | None, keepalive: float | None, *, proxy: bool) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        # A message that is over the server's limit is refused by the server; what it answers is within its limits.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # One that comes back is found in a second; gRPC's own two minutes are made for more clients than these.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Who does not answer a handshake (a plain port is asked for TLS) is given up after half of gRPC's time.
        ("grpc.min_reconnect_backoff_ms", 10_000),
    ]
    if keepalive is not None:
        if not is_number(keepalive) or keepalive <= 0:
            raise argument_error(keepalive=keepalive)
        # A server that is gone without a word, or stands still, is noticed in half a minute.
        options += [
            ("grpc.keepalive_time_ms", max(round(keepalive * 1000), 1)),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    if endpoint.is_here or not proxy:
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _checked(metadata: Metadata) -> Pairs:
    try:
        pairs = [*(metadata.items() if isinstance(metadata, Mapping) else metadata)]
        return tuple((_checked_name(name), _checked_value(name, value)) for name, value in pairs)
    except (TypeError, ValueError):
        raise InvalidInputError(
            "metadata must be pairs of a name (of a-z 0-9 _ . -, not grpc-… nor tidegate-session) and a text of "
            "printable ASCII, or bytes where the name ends in -bin"
        ) from None


def _checked_name(name: object) -> str:
    lowered = name.lower() if isinstance(name, str) else ""
    if not re.fullmatch(r"[0-9a-z_.-]+", lowered) or lowered.startswith("grpc-") or lowered == SESSION_KEY:
        raise ValueError
    return lowered


def _checked_value(name: str, value: str | bytes) -> str | bytes:
    """Names that end in -bin carry bytes, others visible ASCII and spaces (gRPC over HTTP2)."""
    if name.lower().endswith("-bin"):
        fits = isinstance(value, bytes)
    else:
        fits = isinstance(value, str) and value.isascii() and value.isprintable()
    if not fits:
        raise ValueError
    return value
