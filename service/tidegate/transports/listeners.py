"""Sockets that listen: TCP on one address, on IPv4 and IPv6 together, or on a port that workers share; or Unix sockets.

Servers are given sockets and open none, so that all of them listen alike.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from tidegate.config import UNIX, Address, flag, parse_address
from tidegate.errors import ConfigurationError

BACKLOG = 2048
ABSTRACT = "unix-abstract:"
"""As gRPC writes a Unix socket that has a name of its own and no path (unix(7))."""


def listen(name: str, text: str, *, is_shared: bool = False, mode: int = 0o600, stalled: float = 30) -> socket.socket:
    """Return a listening socket at ``HOST:PORT``, ``unix:PATH`` or ``unix-abstract:NAME``, the setting ``name``.

    ``[::]`` listens on IPv4 too. With ``is_shared`` several processes listen at one port, and the kernel spreads
    connections among them. ``mode`` is a Unix socket's. A client that leaves what it was sent unread for ``stalled``
    seconds loses its connection; not on a Unix socket.

    Raises:
        ConfigurationError: The address cannot be had.
    """
    try:
        if text.startswith(UNIX):
            listener = _listen_at_path(Path(text.removeprefix(UNIX)), mode)
        elif text.startswith(ABSTRACT):
            listener = _listen_unix("\0" + text.removeprefix(ABSTRACT))
        else:
            listener = _listen(text, is_shared, stalled)
    except OSError as error:
        raise _refusal(name, text, error) from None
    listener.setblocking(False)
    return listener


def hold(name: str, text: str) -> socket.socket:
    """Return a socket that keeps ``HOST:PORT`` for processes that share it: bound and not listening, it gets no
    connections.

    Raises:
        ConfigurationError: The address cannot be had, or somebody listens there; or it is a Unix socket's, which no
            two processes share.
    """
    if text.startswith(UNIX):
        raise ConfigurationError(f"{flag(name)}: {text}: only one worker can have a Unix socket: give HOST:PORT")
    try:
        # Sharing would also succeed beside another server of ours, so first ask for the port alone.
        with _listen(text, is_shared=False) as alone:
            port = alone.getsockname()[1]
            held = socket.socket(alone.family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((parse_address(text).host, port))
    except OSError as error:
        raise _refusal(name, text, error) from None
    return held


@contextlib.contextmanager
def listening(
    name: str, text: str, *, is_shared: bool = False, mode: int = 0o600, stalled: float = 30
) -> Iterator[socket.socket]:
    """`listen` for as long as the block; a Unix socket's path goes with it, unless another server has taken it."""
    with listen(name, text, is_shared=is_shared, mode=mode, stalled=stalled) as listener:
        path = Path(text.removeprefix(UNIX)) if text.startswith(UNIX) else None
        inode = None if path is None else path.lstat().st_ino
        try:
            yield listener
        finally:
            if path is not None:
                with contextlib.suppress(FileNotFoundError):
                    if path.lstat().st_ino == inode:
                        path.unlink()


def url_of(listener: socket.socket, host: str | None = None, *, is_tls: bool = False) -> str:
    """Return where a socket listens, as clients write it; ``host`` stands for the address where it was a name."""
    if listener.family == socket.AF_UNIX:
        name = listener.getsockname()
        return f"{ABSTRACT}{name[1:].decode()}" if isinstance(name, bytes) else f"{UNIX}{name}"
    bound, port = listener.getsockname()[:2]
    return f"{'https' if is_tls else 'http'}://{Address(host or bound, port)}"


def _listen(text: str, is_shared: bool, stalled: float = 30) -> socket.socket:
    address = parse_address(text)
    family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
    is_dual = family == socket.AF_INET6 and address.host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server(
        address, family=family, backlog=BACKLOG, reuse_port=is_shared, dualstack_ipv6=is_dual
    )
    # What is accepted inherits these. An answer does not wait for a next one to fill its packet; a client whose machine
    # is gone is found out within a minute; so is one that leaves what it was sent unread.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, 40),
        (socket.TCP_KEEPINTVL, 10),
        (socket.TCP_KEEPCNT, 2),
        (socket.TCP_USER_TIMEOUT, round(stalled * 1000)),
    ):
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    return listener


_WHAT_TO_DO = {
    errno.EACCES: "a port below 1024 is for root, or for who has CAP_NET_BIND_SERVICE: take a higher one",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address: 0.0.0.0 and [::] stand for all of them",
    errno.EMFILE: "this process may open no more files: raise `ulimit -n`",
    errno.ENFILE: "this machine may open no more files: raise the kernel's fs.file-max",
}


def _refusal(name: str, text: str, error: OSError) -> ConfigurationError:
    # Python adds to the text of some errors, and has errors of its own, whose text is all there is.
    known = None if isinstance(error, socket.gaierror) else error.errno
    reason = os.strerror(known) if known else error.strerror or str(error)
    is_unknown = isinstance(error, socket.gaierror)
    is_port = not text.startswith((UNIX, ABSTRACT))
    advice = "is the host's name right?" if is_unknown else _WHAT_TO_DO.get(known or 0) if is_port else None
    told = f"{flag(name)}: {text}: {reason.lower()}" + (f": {advice}" if advice else "")
    return ConfigurationError(told, reason="PORT_IN_USE" if known == errno.EADDRINUSE else None)


def _listen_at_path(path: Path, mode: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "")
        _check_unused(path)
        path.unlink()
    # Nobody can connect before `listen`, so there is no moment with another mode.
    return _listen_unix(str(path), lambda: path.chmod(mode))


def _listen_unix(address: str, prepare: Callable[[], None] = lambda: None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(address)
        prepare()
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _check_unused(path: Path) -> None:
    """Raise where somebody listens at the path; what a killed server left behind is nobody's."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, "")
