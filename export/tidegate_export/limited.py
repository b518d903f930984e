"""How the verbs of this package do their work: in a process of their own, for the graph may be anybody's.

Knows the command line's limits, and what a verb tells in the end.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tidegate.bundle import Json
from tidegate.errors import BundleError
from tidegate.sandbox import Limits, run_limited

LONG_SECONDS = 3600.0
"""For what trains nothing, but may run a graph over years of held-out data."""

MemoryLimit = Annotated[
    int, typer.Option("--memory-limit", "--memory-mb", min=256, help="MiB of memory that it may take.")
]
TimeLimit = Annotated[float, typer.Option("--time-limit", min=1, help="Seconds that it may take.")]


def run_verb(function: str, said: Json, limits: Limits, *, is_quiet: bool = True) -> None:
    """Let ``function`` (``module:name``), which returns what to tell and whether there is a bundle, do what was said.

    Raises:
        typer.Exit: There is none.
    """
    try:
        told, is_done = run_limited(function, said, limits, is_quiet=is_quiet)
    except BundleError as error:
        told, is_done = error.message, False
    typer.echo(told, err=not is_done)
    if not is_done:
        raise typer.Exit(2)
