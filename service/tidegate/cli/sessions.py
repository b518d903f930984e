"""``tidegate sessions``: manages the sessions of a running server, and migrates the store of a stopped one."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from tidegate.api import SessionInfo
from tidegate.cli.connection import DEFAULT_SERVER, Server, connected, reaches_grpc
from tidegate.cli.output import AsJson, print_json, print_table
from tidegate.config import load_settings
from tidegate.errors import InvalidInputError, SessionEndedError

sessions = typer.Typer(
    help="List, show, close, export and import sessions of a running server; migrate the store of a stopped one.",
    no_args_is_help=True,
)

Id = Annotated[str, typer.Argument(help="Id of the session.")]


@sessions.command("list")
@reaches_grpc
def list_sessions(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List the open sessions."""
    with connected(server) as client:
        found = list(client.sessions())
    if as_json:
        print_json([_document(info) for info in found])
    else:
        columns = ("session", "model", "position", "durable", "opened", "expires", "state")
        print_table(columns, [_row(info) for info in found])


@sessions.command()
@reaches_grpc
def show(session: Id, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Show one session."""
    with connected(server) as client:
        info = client.session(session).info
    _print_session(info, as_json=as_json)


@sessions.command()
@reaches_grpc
def close(
    names: Annotated[list[str], typer.Argument(metavar="SESSION...", help="Ids of the sessions.")],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Close sessions. A session that has already ended is no error."""
    with connected(server) as client:
        for name in names:
            with suppress(SessionEndedError):
                client.session(name).close()


@sessions.command("export")
@reaches_grpc
def export_session(
    session: Id,
    file: Annotated[Path, typer.Argument(help="File to write; - for standard output.")],
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Write a session to a file, for `import` on this or another server. The session stays open, unchanged."""
    with connected(server) as client:
        snapshot = client.session(session).snapshot()
    if str(file) == "-":
        sys.stdout.buffer.write(snapshot)
        return
    _write(file, snapshot)
    if as_json:
        print_json({"session": session, "file": str(file), "bytes": len(snapshot)})


@sessions.command("import")
@reaches_grpc
def import_session(
    file: Annotated[Path, typer.Argument(help="File that `export` wrote; - for standard input.")],
    name: Annotated[
        str | None, typer.Option("--id", help="Id of the new session.", show_default="chosen by the server")
    ] = None,
    durable: Annotated[bool, typer.Option("--durable", help="Keep the session in the server's store.")] = False,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl-seconds", min=0, help="Lifetime of the session, in seconds.", show_default="the server's"),
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option(
            "--idle-seconds",
            min=0,
            help="Time without a step after which the session ends, in seconds.",
            show_default="the server's",
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Open a session from an exported file, and print it."""
    snapshot = _read(file)
    with connected(server) as client:
        restored = client.restore(snapshot, id=name, durable=durable, ttl_seconds=ttl, idle_seconds=idle)
    _print_session(restored.info, as_json=as_json)


@sessions.command()
def migrate(
    store: Annotated[
        str | None, typer.Option("--store", help="sqlite or redis://HOST:PORT/DATABASE.", show_default="as for serve")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", help="Directory of the SQLite file.", show_default="as for serve")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Migrate a store from an older format to the one that this version reads. Stop all servers first.

    An interrupted migration can be run again. The SQLite file is copied first; a server migrates it itself on start.
    """
    given = {"store": store, "data_dir": data_dir}
    settings = load_settings({name: value for name, value in given.items() if value is not None})
    from tidegate.sessions.stores.making import migrate_store

    with _progress() as progress:
        done = migrate_store(settings, progress)
    if as_json:
        print_json(done._asdict())
    elif done.backup is None and not done.num_sessions:
        typer.echo("Nothing to migrate.")
    else:
        kept = f" What was there is kept in {done.backup}." if done.backup else ""
        typer.echo(f"{done.num_sessions} sessions migrated, {done.num_damaged} of them damaged.{kept}")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar, if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("sessions")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{file}: {error.strerror}") from None


def _write(file: Path, content: bytes) -> None:
    """Replace the file atomically: after an error the old one is still there."""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as part:
            try:
                part.write(content)
                part.flush()
                os.fsync(part.fileno())
                Path(part.name).replace(file)
            except BaseException:
                Path(part.name).unlink()
                raise
    except OSError as error:
        raise InvalidInputError(f"{file}: {error.strerror}") from None


def _print_session(info: SessionInfo, *, as_json: bool) -> None:
    document = _document(info)
    if as_json:
        print_json(document)
    else:
        print_table(("field", "value"), [(name, _shown(value)) for name, value in document.items()])


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _document(info: SessionInfo) -> dict[str, object]:
    """Return the session as the HTTP interface shows it, with times in RFC 3339."""
    expires = None if info.expires_at is None else _moment(info.expires_at, "microseconds")
    return {**info._asdict(), "created_at": _moment(info.created_at, "microseconds"), "expires_at": expires}


def _row(info: SessionInfo) -> tuple[str, ...]:
    expires = "never" if info.expires_at is None else _moment(info.expires_at)
    model = f"{info.model}/{info.version}"
    durable = "yes" if info.durable else "no"
    return info.id, model, str(info.position), durable, _moment(info.created_at), expires, f"{info.state_bytes} B"


def _moment(seconds: float, precision: str = "seconds") -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
