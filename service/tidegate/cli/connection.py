"""How the verbs reach a running server, and what they say where there is none."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

# gRPC would say on standard error, in words of its own, what we say in one line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tidegate.client import Client, Tls
from tidegate.client.channel import ChannelPlan, ConnectionOptions
from tidegate.client.tls import CONNECTION_CLOSED, NO_SERVER
from tidegate.errors import ConfigurationError, InvalidInputError, UnavailableError

TOKEN_VARIABLE = "TIDEGATE_TOKEN"  # noqa: S105 - its name


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is and how it is reached, as the options say that `reaches_a_server` gives a verb."""

    address: str
    tls: bool = False
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    no_proxy: bool = False
    insecure: bool = False

    @property
    def how(self) -> ConnectionOptions:
        """The same for a client."""
        files = Tls(self.ca, self.client_cert, self.client_key)
        says_plain = self.address.startswith(("http://", "unix"))
        # Files may stand in a profile for all servers, so those that are plain in so many words stay it.
        tls = files if self.tls or (files != Tls() and not says_plain) else None
        token = os.environ.get(TOKEN_VARIABLE) or None
        return {"tls": tls, "credentials": token, "proxy": not self.no_proxy, "insecure": self.insecure}

    def plan(self, option: str) -> ChannelPlan:
        """The same, read; for HTTP too, where the address names a host or a socket.

        Raises:
            ConfigurationError: It cannot be read; ``option`` names the address.
        """
        try:
            plan = ChannelPlan(self.address, **self.how)
        except InvalidInputError as error:
            raise ConfigurationError(f"{option}: {error}") from None
        if option == "--http" and not plan.endpoint.host and plan.endpoint.path is None:
            raise ConfigurationError(f"--http: {self.address} is an address of gRPC: give HOST:PORT")
        return plan


DEFAULT_SERVER = Server("127.0.0.1:8081")

_ADDRESS = "HOST:PORT, https://HOST:PORT or unix:PATH."
_PREFIX = "TIDEGATE_"
_OPTIONS = {
    "tls": (bool, typer.Option("--tls", envvar=f"{_PREFIX}TLS", help="Speak TLS, as https:// in the address says.")),
    "ca": (
        Path | None,
        typer.Option(
            "--ca", envvar=f"{_PREFIX}CA", metavar="FILE", help="Who signs the server's certificate, PEM; speaks TLS."
        ),
    ),
    "client_cert": (
        Path | None,
        typer.Option(
            "--client-cert", envvar=f"{_PREFIX}CLIENT_CERT", metavar="FILE", help="Certificate to show the server, PEM."
        ),
    ),
    "client_key": (
        Path | None,
        typer.Option("--client-key", envvar=f"{_PREFIX}CLIENT_KEY", metavar="FILE", help="Its key, PEM, no password."),
    ),
    "no_proxy": (
        bool,
        typer.Option("--no-proxy", help="Reach other machines without the proxy that the environment names."),
    ),
    "insecure": (
        bool,
        typer.Option("--insecure", help=f"Send the token in {TOKEN_VARIABLE} to another machine without TLS too."),
    ),
}


def reaches_a_server(variable: str, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options by which it reaches a server, in place of the parameter that takes a `Server`.

    That one's name and default are the option's of the address.

    Args:
        variable: Names the address too.
        what: Help for it.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(verb, include_extras=True)
        own = [each.replace(annotation=hints[each.name]) for each in inspect.signature(verb).parameters.values()]
        (index,) = (index for index, each in enumerate(own) if each.annotation is Server)
        name, default = own[index].name, own[index].default
        option = typer.Option(f"--{name}", envvar=variable, metavar="ADDRESS", help=f"{what}: {_ADDRESS}")
        parameters = [own[index].replace(default=default.address, annotation=Annotated[str, option])]
        parameters += [
            inspect.Parameter(
                field, own[index].kind, default=getattr(default, field), annotation=Annotated[kind, option]
            )
            for field, (kind, option) in _OPTIONS.items()
        ]
        own[index : index + 1] = parameters

        @functools.wraps(verb)
        def run(**given: Any) -> None:
            server = Server(given.pop(name), **{field: given.pop(field) for field in _OPTIONS})
            verb(**given, **{name: server})

        # typer reads a function's signature and its annotations.
        run.__signature__ = inspect.Signature(own, return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in own}
        return run

    return decorate


reaches_grpc = reaches_a_server(f"{_PREFIX}SERVER", "Server's gRPC")


@contextlib.contextmanager
def connected(server: Server) -> Iterator[Client]:
    """A client of ``server``.

    Raises:
        ConfigurationError: Nobody answers there, or the options do not go together.
    """
    server.plan("--server")
    try:
        with Client(server.address, **server.how) as client:
            yield client
    except UnavailableError as error:
        if error.reason == CONNECTION_CLOSED:
            raise ConfigurationError(error.message) from None
        if error.reason != UnavailableError.default_reason:
            raise  # a server answered, and said why
        message = error.message if error.message.startswith(NO_SERVER) else f"{NO_SERVER} {server.address}"
        raise ConfigurationError(
            f"{message}: start one with `tidegate serve`, or name another with --server HOST:PORT"
        ) from None
