"""Whether the client of a connection is still there, asked of Linux (sock_diag(7)).

h2corn 2.0.0 does not say ``http.disconnect`` over HTTP/1.1 while a request is answered, so nobody else would find out
that an answer is wanted no more.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
from typing import Final

logger = logging.getLogger(__name__)

Endpoint = tuple[str, int]

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_TCP_ESTABLISHED: Final = 1
_ANY_STATE: Final = 0xFFFFFFFF
_ANY_COOKIE: Final = b"\xff" * 8


class Connections:
    """Asks the kernel for the state of TCP connections; on another system than Linux all are there."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
            self._netlink.settimeout(1)
        except (AttributeError, OSError):
            logger.info("clients that leave over HTTP/1.1 are not noticed on this system")

    def has_left(self, client: Endpoint, server: Endpoint) -> bool:
        """Return whether the client has closed or reset the connection; False where that is not known."""
        if self._netlink is None:
            return False
        try:
            self._netlink.send(_request(client, server))
            reply = self._netlink.recv(8192)
        except OSError:
            return False
        _, kind, _, _, _ = _HEADER.unpack_from(reply)
        # A connection that is gone entirely is answered with the socket that listens in its place, or with an error.
        return kind == _SOCK_DIAG_BY_FAMILY and reply[_HEADER.size + 1] != _TCP_ESTABLISHED

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()


def _request(client: Endpoint, server: Endpoint) -> bytes:
    local, remote = ipaddress.ip_address(server[0]), ipaddress.ip_address(client[0])
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    addresses = local.packed.ljust(16, b"\0") + remote.packed.ljust(16, b"\0")
    ports = struct.pack(">HH", server[1], client[1])
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _ANY_STATE) + ports + addresses
    body += struct.pack("=I", 0) + _ANY_COOKIE
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + body
