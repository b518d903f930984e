"""Rows by name: measured one after the other, printed as they come, put beside those of other runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench import plots, report
from bench.measure import Plan, Row, failed

Catalogue = Mapping[str, Callable[[Plan], Iterator[Row]]]
"""What can be asked for by name; some give several lines of the table."""


def measure(catalogue: Catalogue, names: Sequence[str], plan: Plan) -> list[Row]:
    """The rows of these names, each printed as it comes."""
    console, measured = Console(), []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            for row in _rows(catalogue, name, plan):
                console.print(report.one_line(row), highlight=False, soft_wrap=True)
                measured.append(row)
            progress.advance(task)
    return measured


def _rows(catalogue: Catalogue, name: str, plan: Plan) -> Iterator[Row]:
    """The lines that a row gives; its failure is one, whatever it is, and ends nothing else."""
    try:
        yield from catalogue[name](plan)
    except Exception as error:  # noqa: BLE001 - told in the table
        yield failed(name, f"{type(error).__name__}: {error}")


def add(folder: Path, measured: Sequence[Row], description: Mapping[str, str], plan: Plan) -> None:
    """Put rows into the report that is in ``folder``, or begin one there."""
    earlier = report.read(folder) or report.Written([], description, plan)
    rows = report.merged(earlier.rows, measured)
    names = [f"plots/{name}" for name in plots.draw(folder / "plots", rows)]
    report.write(folder, rows, earlier.machine, earlier.plan, names)
