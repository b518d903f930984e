"""A view as tables in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tidegate.top.view import ModelRow, RequestRow, StoreRow, View

_DRIFT_STYLES = {"normal": "green", "warning": "yellow", "drift": "bold red"}
NONE = "–"


def screen(server: str, view: View | None, problem: str | None = None) -> RenderableType:
    """Return what is shown: the last view, if there was one, and what is wrong, if anything is."""
    parts: list[RenderableType] = [_head(server, view, problem)]
    if view is not None:
        parts += [_models(view.models), _requests(view.requests)]
    return Group(*parts)


def _head(server: str, view: View | None, problem: str | None) -> Text:
    text = Text.assemble(("tidegate ", "bold"), ("" if view is None else view.version, "bold"), "  ", server, "  ")
    if problem is not None:
        return text.append(problem, "bold red")
    if view is None:
        return text.append("reading …", "dim")
    text.append("ready" if view.is_ready else "not ready", "green" if view.is_ready else "bold red")
    text.append(f"  {view.workers} worker{'s' * (view.workers != 1)}  {view.cores:.2f} cores  ")
    text.append(f"{_size(view.memory_bytes)} memory\n")
    text.append(f"sessions {view.ephemeral:,} ephemeral, {view.durable:,} durable copies  ")
    text.append(f"arena {_size(view.arena_bytes)} of {_size(view.arena_limit_bytes)}  ")
    text.append(f"evictions {view.evictions:,.1f}/s", "yellow" if view.evictions else "")
    return text if view.store is None else _add_store(text, view.store)


def _add_store(text: Text, store: StoreRow) -> Text:
    text.append(f"\nstore {store.store} ").append(
        "up" if store.is_up else "away", "green" if store.is_up else "bold red"
    )
    text.append(f"  {store.writes:,.0f} writes/s  commit p99 {_seconds(store.commit_p99)}  ")
    text.append(f"conflicts {store.conflicts:,.1f}/s  ", "yellow" if store.conflicts else "")
    return text.append(f"failures {store.failures:,.1f}/s", "bold red" if store.failures else "")


def _models(rows: list[ModelRow]) -> Table:
    table = _table("model", "steps/s", "generated/s", "rows/run", "busy", "waiting", "queue p99", "repeats/s",
                   "conflicts/s", "surprise", "drift")  # fmt: skip
    for row in sorted(rows, key=lambda row: (row.model, int(row.version))):
        surprise = NONE if row.surprise is None else f"{row.surprise:.3f} {row.unit}"
        table.add_row(
            f"{row.model}/{row.version}", f"{row.steps:,.0f}", f"{row.generated:,.0f}",
            NONE if row.rows_per_run is None else f"{row.rows_per_run:.1f}", f"{row.busy:.0%}", f"{row.queued:,}",
            _seconds(row.queue_p99), f"{row.repeats:,.1f}", f"{row.conflicts:,.1f}", surprise,
            Text(row.drift or NONE, _DRIFT_STYLES.get(row.drift or "", "dim")),
        )  # fmt: skip
    return table


def _requests(rows: list[RequestRow]) -> Table:
    table = _table("requests", "a second", "not ok/s", "p50", "p99")
    for row in sorted(rows, key=lambda row: (-row.rate, row.interface, row.method)):
        failed = Text(f"{row.failed:,.1f}", "yellow" if row.failed > 0 else "")
        table.add_row(
            f"{row.interface} {row.method}", f"{row.rate:,.1f}", failed, _seconds(row.p50), _seconds(row.p99),
            style=None if row.rate else "dim",
        )  # fmt: skip
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _seconds(value: float | None) -> str:
    """Three digits of a duration, in the unit that fits."""
    if value is None:
        return NONE
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _size(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.1f} GiB"
