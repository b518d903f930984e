"""How commands connect to a running server, and the error if there is none."""

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

# gRPC would print its own text on standard error; the commands report the error in one line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tidegate.client import Client, Tls
from tidegate.client.channel import ChannelPlan, ConnectionOptions
from tidegate.client.tls import CONNECTION_CLOSED, NO_SERVER
from tidegate.errors import ConfigurationError, InvalidInputError, UnavailableError

TOKEN_VARIABLE = "TIDEGATE_TOKEN"  # noqa: S105 - its name


@dataclass(frozen=True, slots=True)
class Server:
    """A server's address and how to connect to it, from the options that `reaches_a_server` adds."""

    address: str
    tls: bool = False
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    no_proxy: bool = False
    insecure: bool = False

    @property
    def how(self) -> ConnectionOptions:
        """The same as arguments of a `Client`."""
        files = Tls(self.ca, self.client_cert, self.client_key)
        says_plain = self.address.startswith(("http://", "unix"))
        # The files may be set for all servers in a shell profile, so an address that asks for plain text stays plain.
        tls = files if self.tls or (files != Tls() and not says_plain) else None
        token = os.environ.get(TOKEN_VARIABLE) or None
        return {"tls": tls, "credentials": token, "proxy": not self.no_proxy, "insecure": self.insecure}

    def plan(self, option: str) -> ChannelPlan:
        """The same, parsed. The option ``--http`` needs an address with a host or a socket.

        Raises:
            ConfigurationError: The options are invalid; the message names ``option``, which holds the address.
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
    "tls": (
        bool,
        typer.Option("--tls", envvar=f"{_PREFIX}TLS", help="Use TLS, like an address that begins with https://."),
    ),
    "ca": (
        Path | None,
        typer.Option(
            "--ca",
            envvar=f"{_PREFIX}CA",
            metavar="FILE",
            help="PEM file with the authority that signs the server's certificate; implies TLS.",
        ),
    ),
    "client_cert": (
        Path | None,
        typer.Option(
            "--client-cert",
            envvar=f"{_PREFIX}CLIENT_CERT",
            metavar="FILE",
            help="PEM file with the client's certificate; implies TLS.",
        ),
    ),
    "client_key": (
        Path | None,
        typer.Option(
            "--client-key",
            envvar=f"{_PREFIX}CLIENT_KEY",
            metavar="FILE",
            help="PEM file with the key of the client's certificate, without a password.",
        ),
    ),
    "no_proxy": (
        bool,
        typer.Option("--no-proxy", help="Connect directly to other machines, without the environment's proxy."),
    ),
    "insecure": (
        bool,
        typer.Option("--insecure", help=f"Send the token in {TOKEN_VARIABLE} to another machine even without TLS."),
    ),
}


def reaches_a_server(variable: str, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's parameter of type `Server` by the options for a connection.

    The option of the address takes the parameter's name and default.

    Args:
        variable: Environment variable of the address.
        what: What the address is, for the help.
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


reaches_grpc = reaches_a_server(f"{_PREFIX}SERVER", "gRPC address of the server")


@contextlib.contextmanager
def connected(server: Server) -> Iterator[Client]:
    """Yield a client of ``server``.

    Raises:
        ConfigurationError: No server answers there, or the options contradict each other.
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
