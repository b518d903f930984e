"""Output of the commands: tables for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table or text.")]


def print_json(document: Any) -> None:
    """Print one line of JSON."""
    typer.echo(json.dumps(document, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print rows of text under ``columns``."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")  # a truncated id or path would be useless
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if title is not None:
        typer.echo(title)
    Console().print(table)
