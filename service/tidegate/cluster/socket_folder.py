"""Finds a place for the workers' sockets: a new folder in the first directory that can hold them.

A Unix socket's path has 107 bytes, and a long TMPDIR, as on batch systems, exceeds that. A container's file system may
be read-only. So each place is tried with a trial socket.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tidegate.errors import ConfigurationError

log = logging.getLogger(__name__)

_TRIAL = "trial.sock"
"""As long as the longest name, of worker 1023."""


class SocketPlace(NamedTuple):
    """``folder``, or None if no directory is usable: then sockets are abstract and ``abstract`` is their prefix."""

    folder: Path | None
    abstract: str = ""


@contextlib.contextmanager
def socket_place(data_dir: Path, *, has_abstract: bool = sys.platform == "linux") -> Iterator[SocketPlace]:
    """Yield the place for the sockets, and remove it after the block.

    Tried in order: the temporary directory, ``data_dir`` and, where the system has them, abstract sockets.

    Raises:
        ConfigurationError: No place works; the message says why for each.
    """
    problems: list[str] = []
    for base in (_temporary_directory, lambda: _made(data_dir)):
        with contextlib.ExitStack() as stack:
            try:
                path = base()
                folder = stack.enter_context(_folder_in(path))
            except OSError as error:
                problems.append(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
                continue
            yield SocketPlace(folder)
            return
    told = "; ".join(problems)
    if not has_abstract:
        raise ConfigurationError(
            f"--workers: no place for the workers' sockets ({told}): set TMPDIR or --data-dir to a writable directory "
            f"with a short path"
        )
    log.warning("the workers use abstract sockets: every user of this machine can connect to them", extra={"why": told})
    yield SocketPlace(None, f"tidegate-{secrets.token_hex(8)}")


def _temporary_directory() -> Path:
    return Path(tempfile.gettempdir()).absolute()


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path.absolute()


@contextlib.contextmanager
def _folder_in(base: Path) -> Iterator[Path]:
    """Yield a new folder whose path is short enough for a socket; an OSError names ``base`` and the reason."""
    try:
        made = tempfile.TemporaryDirectory(prefix="tidegate-", dir=base)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(base)) from error
    with made as name:
        folder = Path(name)
        try:
            with socket.socket(socket.AF_UNIX) as trial:
                trial.bind(str(folder / _TRIAL))
            (folder / _TRIAL).unlink()
        except OSError as error:
            # "AF_UNIX path too long" comes without an errno.
            raise OSError(error.errno, error.strerror or str(error), str(base)) from error
        yield folder
