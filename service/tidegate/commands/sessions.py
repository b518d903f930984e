"""``tidegate sessions``: the running sessions of a server."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

import typer

from tidegate.commands.connection import DEFAULT_SERVER, Server, connected
from tidegate.commands.output import AsJson, print_json, print_table
from tidegate.core import SessionInfo
from tidegate.errors import SessionEndedError

sessions = typer.Typer(help="List, show and close the sessions of a running server.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The session.")]


@sessions.command("list")
def list_sessions(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List the open sessions."""
    with connected(server) as client:
        found = list(client.sessions())
    if as_json:
        print_json([_document(info) for info in found])
    else:
        columns = ("session", "model", "position", "opened", "expires", "state")
        print_table(columns, [_row(info) for info in found])


@sessions.command()
def show(session: Id, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Show one session."""
    with connected(server) as client:
        info = client.session(session).info
    document = _document(info)
    if as_json:
        print_json(document)
    else:
        print_table(("field", "value"), [(name, str(value)) for name, value in document.items()])


@sessions.command()
def close(
    names: Annotated[list[str], typer.Argument(metavar="SESSION...", help="The sessions.")],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Close sessions; what is closed already stays so."""
    with connected(server) as client:
        for name in names:
            with suppress(SessionEndedError):
                client.session(name).close()


def _document(info: SessionInfo) -> dict[str, object]:
    """As over HTTP: times in RFC 3339."""
    expires = None if info.expires_at is None else _moment(info.expires_at, "microseconds")
    return {**info._asdict(), "created_at": _moment(info.created_at, "microseconds"), "expires_at": expires}


def _row(info: SessionInfo) -> tuple[str, ...]:
    expires = "never" if info.expires_at is None else _moment(info.expires_at)
    model = f"{info.model}/{info.version}"
    return info.id, model, str(info.position), _moment(info.created_at), expires, f"{info.state_bytes} B"


def _moment(seconds: float, precision: str = "seconds") -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
