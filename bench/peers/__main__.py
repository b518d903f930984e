"""`python -m bench.peers`: measure what users would pick instead, and put its rows into the report of `make bench`.

Each peer gets an environment of its own (bench/peers/NAME/.venv). What cannot be installed or started is a line of the
report that says why.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import client, machine, report
from bench.measure import Plan
from bench.peers import triton
from bench.peers.catalogue import PEERS
from bench.peers.comparison import peer_rows
from bench.processes import ROOT
from bench.table import add

NAMES = [peer.name for peer in PEERS]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    peers: Annotated[str, typer.Option(help="Which, with commas between.")] = ",".join(NAMES),
    seconds: Annotated[float, typer.Option(help="Of one measurement.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="Of each comparison.")] = 3,
    triton_port: Annotated[int, typer.Option(help="Where a Triton may listen for gRPC on this machine.")] = 8001,
    output: Annotated[Path | None, typer.Option(help="Directory; default bench/, if all are measured.")] = None,
) -> None:
    """Install, measure, print, write."""
    asked = peers.split(",")
    if unknown := set(asked) - set(NAMES):
        raise typer.BadParameter(f"no such peers: {', '.join(sorted(unknown))}", param_hint="--peers")
    plan, description = Plan(seconds, rounds), machine.describe()
    client.build()
    console, measured = Console(), []
    rows = peer_rows([peer for peer in PEERS if peer.name in asked], plan)
    for row in chain(rows, triton.rows(triton_port, plan)):
        console.print(report.one_line(row), highlight=False, soft_wrap=True)
        measured.append(row)
    if output is None and asked == NAMES:
        output = ROOT / "bench"
    if output is not None:
        add(output, measured, description, plan)


if __name__ == "__main__":
    app()
