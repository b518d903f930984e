"""``tidegate``: finds the verb that was asked for and turns errors into one line and an exit code.

Verbs are imported when they are asked for, or when the help lists them all. Those of other packages (train, export) are
found by the entry points of the group ``tidegate.commands``; nothing of theirs is named here.
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
EXIT_CODES = "Exit codes: 0 done; 1 refused or failed; 2 wrong usage or settings, or no server there; 130 interrupted."


class Verbs(TyperGroup):
    """The group of all verbs; knows their names without importing them."""

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
            raise  # who reads the output has seen enough: typer ends quietly
        except OSError as error:
            # A directory that cannot be written, a full disk: no fault of the program.
            place = "" if error.filename is None else f"{error.filename}: "
            typer.echo(f"tidegate: {place}{error.strerror or error}", err=True)
            raise typer.Exit(FAILED) from None


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def command_of(name: str, target: typer.Typer | Callable[..., None]) -> Any:
    """Make a command from a typer-annotated function, or a group from an app of several."""
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Serve recurrent sequence models with their state, and talk to a server that does."""


def main() -> None:
    """Run the command line."""
    app()
