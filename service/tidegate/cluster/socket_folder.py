"""Where the workers' sockets lie: in a folder of their own, wherever one can be made that sockets fit into.

A Unix socket's path has 107 bytes, which a long TMPDIR fills (batch systems), and a container's file system may be
read-only. So each place is tried out.
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
    """``folder`` is None where no folder can be had: then sockets are *abstract*, of names that begin so."""

    folder: Path | None
    abstract: str = ""


@contextlib.contextmanager
def socket_place(data_dir: Path, *, has_abstract: bool = sys.platform == "linux") -> Iterator[SocketPlace]:
    """Yield where sockets are to lie; what was made for them is removed after the block.

    The first that will do: the temporary directory, ``data_dir``, and where the system has them, abstract sockets.

    Raises:
        ConfigurationError: None will do, with what is wrong with each.
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
            f"--workers: the workers' sockets fit nowhere ({told}): set TMPDIR or --data-dir to a short path of a "
            f"directory that can be written"
        )
    log.warning(
        "the workers' sockets lie in no directory: every user of this machine can reach them", extra={"why": told}
    )
    yield SocketPlace(None, f"tidegate-{secrets.token_hex(8)}")


def _temporary_directory() -> Path:
    return Path(tempfile.gettempdir()).absolute()


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path.absolute()


@contextlib.contextmanager
def _folder_in(base: Path) -> Iterator[Path]:
    """Yield a new folder that a socket fits into; OSError names ``base`` and says what is wrong."""
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
            # What does not fit has no number: "AF_UNIX path too long".
            raise OSError(error.errno, error.strerror or str(error), str(base)) from error
        yield folder
