"""TLS of a client: whom it trusts, what it shows, and what is wrong where no connection comes about."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import grpc

from tidegate.client.endpoint import Endpoint
from tidegate.errors import ConfigurationError, TidegateError, UnavailableError

NO_SERVER = "no server answers at"
TLS_MISMATCH = "TLS_MISMATCH"
CONNECTION_CLOSED = "CONNECTION_CLOSED"
"""Reasons where somebody is there, and yet no connection came about."""

_PATHS = str | PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Tls:
    """How TLS is spoken. All files are PEM.

    Args:
        ca: Who may sign the server's certificate; None: the authorities that gRPC brings, or those in the file that
            GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names.
        certificate: What this client shows to a server that asks for it, and
        key: its key, without a password.
        server_name: The name in the server's certificate, where it is not the address's.
    """

    ca: _PATHS = None
    certificate: _PATHS = None
    key: _PATHS = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """TLS for other libraries than gRPC.

        Raises:
            ConfigurationError: A file cannot be used.
        """
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("a client certificate and its key are given together, or neither is")
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise _unusable(error, f"{self.ca} is no PEM file of certificates") from None
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
            except OSError as error:
                what = f"{self.certificate} and {self.key} are no PEM files of a certificate and its key"
                raise _unusable(error, f"{what} without a password") from None
        return context

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """TLS for gRPC.

        Raises:
            ConfigurationError: A file cannot be used.
        """
        self.context()  # gRPC looks into the files when it connects, and tells its log what is wrong
        files = (self.ca, self.key, self.certificate)
        return grpc.ssl_channel_credentials(*(None if file is None else Path(file).read_bytes() for file in files))


def why_not_connected(endpoint: Endpoint, words: str) -> TidegateError:
    """Return the error for a connection that did not come about: what is wrong, and what to do.

    Args:
        endpoint: The server's.
        words: What gRPC, or Python's ssl, says.
    """
    for is_tls, sign, wrong in _SIGNS:
        if endpoint.is_tls == is_tls and (found := re.search(sign, words, re.IGNORECASE)):
            detail = found.group(1).strip() if found.lastindex else ""
            return ConfigurationError(wrong.format(server=endpoint, detail=detail), reason=TLS_MISMATCH)
    # These may be the ends of a server that stops, or is too busy: the same request may find it later.
    for is_tls, sign, hint in _DOUBTFUL_SIGNS:
        if endpoint.is_tls == is_tls and re.search(sign, words, re.IGNORECASE):
            return UnavailableError(hint.format(server=endpoint), reason=CONNECTION_CLOSED)
    proxy = "" if endpoint.proxy is None else f" by the proxy of {endpoint.proxy} (no_proxy makes exceptions)"
    cause = re.sub(r".*(?:last error: \w+: |errors resolving )", "", words, flags=re.DOTALL)
    return UnavailableError(f"{NO_SERVER} {endpoint}{proxy}", cause=cause)


_CLIENT_CERTIFICATE = "Tls(certificate=FILE, key=FILE) or --client-cert FILE --client-key FILE"
# What OpenSSL and gRPC say, and what it means. They are looked for in this order.
_SIGNS = (
    (
        True,
        "hostname.verification|hostname mismatch|ip address mismatch|match .*(?:hostname|ip address)",
        "the certificate of {server} is for another name: use a name that is in it, or Tls(server_name=…)",
    ),
    (
        True,
        r"certificate.verify.failed: ([^:(]*)",
        "the certificate of {server} is not trusted ({detail}): say who signs it, Tls(ca=FILE) or --ca FILE",
    ),
    (
        True,
        "certificate.required|unwrap failed|alert.(?:unknown.ca|bad.certificate|certificate|access.denied)",
        "{server} asks for a client certificate, or does not trust the one shown: " + _CLIENT_CERTIFICATE,
    ),
    (
        True,
        "wrong.version.number|record.layer.failure",
        "{server} does not speak TLS: leave out https://, tls= or --tls, or name the port that does",
    ),
    (True, "alpn", "{server} speaks TLS but not HTTP/2, which gRPC needs: name another port"),
    (False, "http1.x server", "{server} does not speak gRPC: name another port; if this one wants TLS, write https://"),
)  # fmt: skip

_CLOSED = "socket closed|connection reset|broken pipe|disconnected|unexpected.eof"
_DOUBTFUL_SIGNS = (
    (
        True,
        "handshake read failed .endpoint closing|handshake.*(?:timed out|taking)",
        "{server} leaves TLS unanswered: if it speaks plain text, leave out https://, tls= or --tls",
    ),
    (
        True,
        _CLOSED,
        "{server} closed the TLS connection as soon as it was made: if it asks for a client certificate, "
        + _CLIENT_CERTIFICATE,
    ),
    (
        False,
        f"{_CLOSED}|illegal (?:request|status) line",
        "{server} closed the connection as soon as it was made: if it speaks TLS, write https://… or --tls",
    ),
)


def _unusable(error: OSError, what: str) -> ConfigurationError:
    if isinstance(error, ssl.SSLError):
        return ConfigurationError(f"{what} ({error.reason or error})")
    return ConfigurationError(f"{what} ({error.strerror})")
