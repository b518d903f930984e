"""Listening sockets: one process's own, or a port that several processes of one server share."""

from __future__ import annotations

import errno
import os
import socket

from tidegate.config import Address, flag, parse_address
from tidegate.errors import ConfigurationError


def listen(name: str, text: str, *, is_shared: bool = False) -> socket.socket:
    """Return a listening socket at ``HOST:PORT``, the setting ``name``; who connects waits until the server accepts.

    With ``is_shared`` several processes listen there, and the kernel spreads connections among them.

    Raises:
        ConfigurationError: The address cannot be had.
    """
    address = parse_address(text)
    try:
        return socket.create_server(address, family=_family(address), backlog=2048, reuse_port=is_shared)
    except OSError as error:
        raise _refusal(name, address, error) from None


def hold(name: str, text: str) -> socket.socket:
    """Return a socket that keeps ``HOST:PORT`` for processes that share it: bound and not listening, it gets no
    connections.

    Raises:
        ConfigurationError: The address cannot be had, or somebody listens there.
    """
    address = parse_address(text)
    try:
        # Sharing would also succeed beside another server of ours, so first ask for the port alone.
        with socket.create_server(address, family=_family(address)) as alone:
            port = alone.getsockname()[1]
        held = socket.socket(_family(address))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((address.host, port))
    except OSError as error:
        raise _refusal(name, address, error) from None
    return held


def _family(address: Address) -> int:
    return socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]


_WHAT_TO_DO = {
    errno.EACCES: "a port below 1024 is for root, or for who has CAP_NET_BIND_SERVICE: take a higher one",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address: 0.0.0.0 and [::] stand for all of them",
    errno.EMFILE: "this process may open no more files: raise `ulimit -n`",
    errno.ENFILE: "this machine may open no more files: raise the kernel's fs.file-max",
}


def _refusal(name: str, address: Address, error: OSError) -> ConfigurationError:
    is_unknown = isinstance(error, socket.gaierror)
    # Python adds to the text of some errors; a name that is not found has a number of its own kind.
    reason = str(error.strerror) if is_unknown else os.strerror(error.errno or 0)
    advice = "is the host's name right?" if is_unknown else _WHAT_TO_DO.get(error.errno or 0)
    told = f"{flag(name)}: {address}: {reason.lower()}" + (f": {advice}" if advice else "")
    in_use = error.errno == errno.EADDRINUSE and not is_unknown
    return ConfigurationError(told, reason="PORT_IN_USE" if in_use else None)
