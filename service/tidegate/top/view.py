"""The figures of a moment, as `tidegate top` shows them in tables and ``--json`` prints them. Rates are a second's."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tidegate.top.scrape import Labels, Scrape, ScrapeDelta


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One method of one interface; quantiles in seconds, None where nobody asked."""

    interface: str
    method: str
    rate: float
    failed: float
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One version of a model.

    Attributes:
        steps: Steps a second; ``generated`` of them were sampled.
        rows_per_run: How well steps are batched.
        busy: Share of the time inside onnxruntime; of several workers, their sum.
        surprise: Mean of the steps since the last reading, in ``unit``.
        drift: State of its control chart.
    """

    model: str
    version: str
    provider: str
    steps: float
    generated: float
    rows_per_run: float | None
    busy: float
    queued: int
    queue_p99: float | None
    repeats: float
    conflicts: float
    surprise: float | None
    unit: str
    drift: str | None


@dataclass(frozen=True, slots=True)
class StoreRow:
    """The store of durable sessions; ``commit_p99`` in seconds."""

    store: str
    is_up: bool
    writes: float
    conflicts: float
    failures: float
    commit_p99: float | None


@dataclass(frozen=True, slots=True)
class View:
    """A server between two readings."""

    version: str
    is_ready: bool
    workers: int
    cores: float
    memory_bytes: int
    arena_bytes: int
    arena_limit_bytes: int
    ephemeral: int
    durable: int
    evictions: float
    requests: list[RequestRow]
    models: list[ModelRow]
    store: StoreRow | None


def view(before: Scrape, now: Scrape) -> View:
    """Return what happened between two readings of a server, and how it stands."""
    between = ScrapeDelta(before, now)
    return View(
        version=next((labels["version"] for labels, _ in now.of("tidegate_build_info")), "?"),
        is_ready=now.total("tidegate_ready") > 0,
        workers=int(now.total("tidegate_workers")),
        cores=between.rate("process_cpu_seconds_total"),
        memory_bytes=int(now.total("process_resident_memory_bytes")),
        arena_bytes=int(now.total("tidegate_arena_bytes")),
        arena_limit_bytes=int(now.total("tidegate_arena_limit_bytes")),
        ephemeral=int(now.total("tidegate_sessions", tier="ephemeral")),
        durable=int(now.total("tidegate_sessions", tier="durable")),
        evictions=between.rate("tidegate_evictions_total"),
        requests=[_request(between, labels) for labels in _sorted(now, "tidegate_request_seconds_count")],
        models=[_model(between, labels) for labels in _sorted(now, "tidegate_model_info")],
        store=next((_store(between, labels) for labels, _ in now.of("tidegate_store_up")), None),
    )


def _sorted(now: Scrape, name: str) -> list[Labels]:
    return sorted((labels for labels, _ in now.of(name)), key=lambda labels: list(labels.values()))


def _request(between: ScrapeDelta, labels: Labels) -> RequestRow:
    rate = between.rate("tidegate_requests_total", **labels)
    return RequestRow(
        interface=labels["interface"],
        method=labels["method"],
        rate=rate,
        failed=rate - between.rate("tidegate_requests_total", **labels, outcome="ok"),
        p50=between.quantile(0.5, "tidegate_request_seconds", **labels),
        p99=between.quantile(0.99, "tidegate_request_seconds", **labels),
    )


def _model(between: ScrapeDelta, info: Labels) -> ModelRow:
    labels = {"model": info["model"], "version": info["version"]}
    states = [found["state"] for found, value in between.now.of("tidegate_drift_state", **labels) if value]
    return ModelRow(
        **labels,
        provider=info.get("provider", ""),
        steps=between.rate("tidegate_steps_total", **labels),
        generated=between.rate("tidegate_generated_tokens_total", **labels),
        rows_per_run=between.ratio("tidegate_rows_total", "tidegate_runs_total", **labels),
        busy=between.rate("tidegate_run_seconds_total", **labels),
        queued=int(between.now.total("tidegate_queued_chunks", **labels)),
        queue_p99=between.quantile(0.99, "tidegate_queue_seconds", **labels),
        repeats=between.rate("tidegate_repeats_total", **labels),
        conflicts=between.rate("tidegate_conflicts_total", **labels),
        surprise=between.ratio("tidegate_surprise_sum_total", "tidegate_surprise_steps_total", **labels),
        unit=next((found["unit"] for found, _ in between.now.of("tidegate_surprise_count", **labels)), ""),
        # Of several workers the worst is told.
        drift=next((state for state in ("drift", "warning", "normal") if state in states), None),
    )


def _store(between: ScrapeDelta, labels: Labels) -> StoreRow:
    return StoreRow(
        store=labels["store"],
        is_up=between.now.total("tidegate_store_up") > 0,
        writes=between.rate("tidegate_store_writes_total"),
        conflicts=between.rate("tidegate_store_conflicts_total"),
        failures=between.rate("tidegate_store_failures_total"),
        commit_p99=between.quantile(0.99, "tidegate_store_commit_seconds"),
    )


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
