"""`python -m bench`: measure the target table, print it, and write RESULTS.md, RESULTS.json and the plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import client, machine, plots, report
from bench.measure import Plan
from bench.processes import ROOT
from bench.rows import ROWS
from bench.table import measure

QUICK = Plan(seconds=0.5, rounds=2, warmup=0.2, is_quick=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    rows: Annotated[str, typer.Option(help=f"Which, with commas between: {', '.join(ROWS)}.")] = ",".join(ROWS),
    seconds: Annotated[float, typer.Option(help="Of one measurement.")] = Plan().seconds,
    rounds: Annotated[int, typer.Option(min=1, help="Of each comparison.")] = Plan().rounds,
    quick: Annotated[bool, typer.Option("--quick", help="To see that it works: figures mean little.")] = False,
    output: Annotated[Path | None, typer.Option(help="Directory; default bench/, if all rows are measured.")] = None,
    server_flags: Annotated[
        list[str], typer.Option("--server-flags", help="ROW=FLAGS: what a row's server is started with.")
    ] = [],  # noqa: B006
) -> None:
    """Measure, print, write. Exit code 0 also where targets are missed: the table says so."""
    asked = rows.split(",")
    if unknown := set(asked) - set(ROWS):
        raise typer.BadParameter(f"no such rows: {', '.join(sorted(unknown))}", param_hint="--rows")
    flags = dict(item.split("=", 1) for item in server_flags)
    plan = Plan(QUICK.seconds, QUICK.rounds, QUICK.warmup, True, flags) if quick else Plan(seconds, rounds, flags=flags)
    description = machine.describe()
    client.build()
    measured = measure(ROWS, asked, plan)
    if output is None and not quick and asked == list(ROWS):
        output = ROOT / "bench"
    if output is not None:
        if (earlier := report.read(output)) is not None:
            others = [row for row in earlier.rows if report.is_of_others(row) and row.value is not None]
            measured = report.merged(measured, others)
        names = [f"plots/{name}" for name in plots.draw(output / "plots", measured)]
        report.write(output, measured, description, plan, names)


if __name__ == "__main__":
    app()
