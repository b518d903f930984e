"""`python -m bench.stores`: measure durable sessions, and put the rows into the report of `make bench`."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench import client, machine
from bench.measure import Plan
from bench.processes import ROOT
from bench.stores.million import on_redis, on_sqlite
from bench.stores.moving import moving
from bench.stores.stepping import columnar, streams
from bench.table import Catalogue, add, measure

ROWS: Catalogue = {
    "streams": streams,
    "columnar": columnar,
    "moving": moving,
    "million-sqlite": on_sqlite,
    "million-redis": on_redis,
}
QUICK = Plan(seconds=0.5, rounds=2, warmup=0.2, is_quick=True)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    rows: Annotated[str, typer.Option(help=f"Which, with commas between: {', '.join(ROWS)}.")] = ",".join(ROWS),
    seconds: Annotated[float, typer.Option(help="Of one measurement.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Of each comparison.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="To see that it works: figures mean little.")] = False,
    output: Annotated[Path | None, typer.Option(help="Directory; default bench/, if all rows are measured.")] = None,
) -> None:
    """Measure, print, write. Exit code 0 also where targets are missed: the table says so."""
    asked = rows.split(",")
    if unknown := set(asked) - set(ROWS):
        raise typer.BadParameter(f"no such rows: {', '.join(sorted(unknown))}", param_hint="--rows")
    plan = QUICK if quick else replace(Plan(), seconds=seconds, rounds=rounds)
    description = machine.describe()
    logging.disable(logging.WARNING)  # that everysec may lose steps is known here
    client.build()
    measured = measure(ROWS, asked, plan)
    if output is None and not quick and asked == list(ROWS):
        output = ROOT / "bench"
    if output is not None:
        add(output, measured, description, plan)


if __name__ == "__main__":
    app()
