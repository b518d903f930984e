"""The figures of a moment, as `tidegate top` shows them and ``--json`` prints them. Rates are a second's."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.top.scrape import Between, Labels, Scrape


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
    between = Between(before, now)
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


def _request(between: Between, labels: Labels) -> RequestRow:
    rate = between.rate("tidegate_requests_total", **labels)
    return RequestRow(
        interface=labels["interface"],
        method=labels["method"],
        rate=rate,
        failed=rate - between.rate("tidegate_requests_total", **labels, outcome="ok"),
        p50=between.quantile(0.5, "tidegate_request_seconds", **labels),
        p99=between.quantile(0.99, "tidegate_request_seconds", **labels),
    )


def _model(between: Between, info: Labels) -> ModelRow:
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


def _store(between: Between, labels: Labels) -> StoreRow:
    return StoreRow(
        store=labels["store"],
        is_up=between.now.total("tidegate_store_up") > 0,
        writes=between.rate("tidegate_store_writes_total"),
        conflicts=between.rate("tidegate_store_conflicts_total"),
        failures=between.rate("tidegate_store_failures_total"),
        commit_p99=between.quantile(0.99, "tidegate_store_commit_seconds"),
    )
