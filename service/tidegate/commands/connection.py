"""How the verbs reach a running server, and what they say where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

from tidegate.client import Client
from tidegate.errors import ConfigurationError, UnavailableError

Server = Annotated[str, typer.Option("--server", envvar="TIDEGATE_SERVER", metavar="HOST:PORT", help="Server's gRPC.")]
DEFAULT_SERVER = "127.0.0.1:8081"


@contextlib.contextmanager
def connected(server: str) -> Iterator[Client]:
    """A client of ``server``.

    Raises:
        ConfigurationError: Nobody answers there.
    """
    try:
        with Client(server) as client:
            yield client
    except UnavailableError as error:
        if error.reason != UnavailableError.default_reason:
            raise  # a server answered, and said why
        raise ConfigurationError(
            f"no server answers at {server}: start one with `tidegate serve`, or name another with --server HOST:PORT"
        ) from None
