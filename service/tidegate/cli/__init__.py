"""``tidegate``: finds the requested command and turns errors into one line and an exit code.

A command is imported when it is called, or when the help lists all commands. Those of other packages (train, export)
are found through the entry point group ``tidegate.commands``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tidegate import __version__
from tidegate.errors import ConfigurationError, TidegateError, known_names, shown

GROUP = "tidegate.commands"
VERBS = {
    "serve": "tidegate.cli.serve:serve",
    "predict": "tidegate.cli.predict:predict",
    "generate": "tidegate.cli.generate:generate",
    "sessions": "tidegate.cli.sessions:sessions",
    "check": "tidegate.cli.check:check",
    "bench": "tidegate.cli.bench:bench",
    "top": "tidegate.cli.top:top",
}

FAILED = 1
CANNOT_START = 2
EXIT_CODES = (
    "Exit codes: 0 success; 1 refused or failed; 2 wrong usage or settings, or no server reached; 130 interrupted."
)


class Verbs(TyperGroup):
    """The group of all commands. It knows their names without importing them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [*VERBS, *sorted(_plugins())]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        if cmd_name in VERBS:
            module, _, attribute = VERBS[cmd_name].partition(":")
            return command_of(cmd_name, getattr(import_module(module), attribute))
        plugin = _plugins().get(cmd_name)
        return None if plugin is None else command_of(cmd_name, plugin.load())

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        verb, verbs = args[0], self.list_commands(ctx)
        if not verb.startswith("-") and self.get_command(ctx, verb) is None:
            typer.echo(f"tidegate: no command {shown(verb)}{known_names(verb, verbs, 'there are')}", err=True)
            raise typer.Exit(CANNOT_START)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except TidegateError as error:
            typer.echo(f"tidegate: {error}", err=True)
            raise typer.Exit(CANNOT_START if isinstance(error, ConfigurationError) else FAILED) from None
        except BrokenPipeError:
            raise  # the reader of the output is gone: typer ends quietly
        except OSError as error:
            # For example a directory without write permission, or a full disk: not a bug.
            place = "" if error.filename is None else f"{error.filename}: "
            typer.echo(f"tidegate: {place}{error.strerror or error}", err=True)
            raise typer.Exit(FAILED) from None


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def command_of(name: str, target: typer.Typer | Callable[..., None]) -> Any:
    """Make a command from a typer-annotated function, or a group of commands from a typer app."""
    if isinstance(target, typer.Typer):
        command = typer.main.get_command(target)
        command.name = name
        return command
    app = typer.Typer(add_completion=False)
    app.command(name)(target)
    return typer.main.get_command(app)


app = typer.Typer(cls=Verbs, no_args_is_help=True, pretty_exceptions_enable=False, epilog=EXIT_CODES)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tidegate {__version__}")
        raise typer.Exit


@app.callback()
def tidegate(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve recurrent sequence models with their state, and call a running server."""


def main() -> None:
    """Run the command line."""
    app()
