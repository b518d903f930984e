"""A measurement in words, as JSON, and as a picture (by matplotlib). Latencies are milliseconds here."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tidegate.api import ModelInfo
from tidegate.errors import ConfigurationError
from tidegate.loadgen.counts import ServerCounts
from tidegate.loadgen.load import Load
from tidegate.loadgen.measure import Measurement
from tidegate.loadgen.record import Latency, LoadRecord, Samples, percentile

Json = Any

BOUND = 0.9
"""The share of the time, running or waiting for a core, from which the client, one event loop, limits the figures."""
ENOUGH = 0.98
"""The share of the asked rate below which it counts as not reached."""


def as_json(load: Load, model: ModelInfo, seen: Measurement) -> dict[str, Json]:
    """The report as a document; what is not known is null."""
    record = seen.record
    return {
        "model": model.name,
        "version": model.version,
        "interface": load.interface.value,
        "sessions": load.sessions,
        "batch": load.batch,
        "chunk": str(load.mix),
        "rate": load.rate,
        "arrivals": load.arrivals.value if load.rate else None,
        "prompt_sessions": load.prompt_sessions,
        "prompt_length": load.prompt_length if load.prompt_sessions else None,
        "warmup_seconds": load.warmup,
        "seconds": record.seconds,
        "requests": record.num_requests,
        "steps": record.num_steps,
        "requests_per_second": _rate(record.num_requests, record.seconds),
        "steps_per_second": _rate(record.num_steps, record.seconds),
        "latency_ms": {label: _latency_json(samples.latency()) for label, samples in sorted(record.samples.items())},
        "errors": dict(record.errors.most_common()),
        "unsent": record.num_unsent,
        "unfinished": record.num_unfinished,
        "send_lag_ms": _latency_json(record.send_lags.latency()),
        "client_cpu": seen.client.cpu,
        "client_waiting": seen.client.waiting,
        "client_bound": is_client_bound(seen),
        "server": _server_json(seen.server, record.seconds),
    }


def as_text(load: Load, model: ModelInfo, seen: Measurement) -> str:
    """The report without its table of latencies: what was done, what came of it, and what to make of it."""
    record, server = seen.record, seen.server
    loop = "closed loop" if load.rate is None else f"{load.rate:g} requests/s due ({load.arrivals})"
    lines = [
        f"{model.name}/{model.version} over {load.interface}, {_who(load)}, {loop}, {record.seconds:.1f} s",
        (
            f"{_rate(record.num_requests, record.seconds):,.1f} requests/s, "
            f"{_rate(record.num_steps, record.seconds):,.1f} steps/s"
        ),
        f"rows per run: {_rows_text(server)}",
        f"errors: {', '.join(f'{reason} {count}' for reason, count in record.errors.most_common()) or 'none'}",
        f"client: {seen.client.cpu:.0%} of a core, and {seen.client.waiting:.0%} of the time it waited for one",
    ]
    return "\n".join([*lines, *warnings(load, seen)])


def latency_rows(seen: Measurement) -> list[tuple[str, ...]]:
    """A row for each kind of request: count, then milliseconds of p50, p90, p99, p99.9, the greatest, and the mean."""
    found = [(label, samples.latency()) for label, samples in sorted(seen.record.samples.items())]
    return [
        (label, str(each.size), *map(_milliseconds, (*each[2:], each.mean)))
        for label, each in found
        if each is not None
    ]


LATENCY_COLUMNS = ("steps", "requests", "p50", "p90", "p99", "p99.9", "max", "mean")


def is_client_bound(seen: Measurement) -> bool:
    return sum(seen.client) > BOUND


def warnings(load: Load, seen: Measurement) -> list[str]:
    """What a reader of the figures must know."""
    found, record = [], seen.record
    if not record.seconds:
        return ["note: it ended before the warm-up did: nothing was measured"]
    if is_client_bound(seen):
        found.append(
            "note: the client itself was the bound: it had no time left, so the server may do more, and latencies hold"
            " the client's own waits"
        )
    if record.num_unsent:
        found.append(
            f"note: {record.num_unsent} requests were due and never sent: the asked rate was not reached, and true"
            " latencies are longer than these"
        )
    elif load.rate and _rate(record.num_requests, record.seconds) < ENOUGH * load.rate and not load.prompt_sessions:
        found.append("note: the asked rate was not reached")
    if record.num_unfinished:
        found.append(f"note: {record.num_unfinished} requests were cut off at the end and are in no latency")
    return found


def _who(load: Load) -> str:
    noun = "sessions" if load.interface.has_sessions else "callers"
    batch = f", {load.batch} in a message" if load.interface.has_batches else ""
    prompts = f", {load.prompt_sessions} more push {load.prompt_length} steps" if load.prompt_sessions else ""
    return f"{load.sessions} {noun}{batch}{prompts}"


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _rows_text(server: ServerCounts | None) -> str:
    if server is None:
        return "not known (no /metrics at --http, or the server was started anew)"
    if server.rows_per_run is None:
        return "not known (/metrics at --http counted no run: another server?)"
    return f"{server.rows_per_run:.1f}"


def _milliseconds(seconds: float) -> str:
    """Three digits or more, and no longer than a column."""
    return f"{1000 * seconds:.2f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def _latency_json(latency: Latency | None) -> Json:
    if latency is None:
        return None
    size, *seconds = latency
    return {"count": size, **{name: 1000 * value for name, value in zip(Latency._fields[1:], seconds, strict=True)}}


def _server_json(server: ServerCounts | None, seconds: float) -> Json:
    if server is None:
        return None
    return {
        "runs": server.runs,
        "rows": server.rows,
        "steps": server.steps,
        "rows_per_run": server.rows_per_run,
        "cpu": _rate(server.cpu_seconds, seconds),
    }


NUM_BINS = 60
TICKS = (0.5, 0.9, 0.99, 0.999, 0.9999)


def require_matplotlib() -> None:
    """Tell before the load rather than after it that no plot will come.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigurationError("--plot needs matplotlib: pip install matplotlib, or the extra tidegate[train]")


def draw_latency(path: Path, record: LoadRecord, title: str) -> None:
    """Write the picture as PNG.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    # matplotlib keeps its list of fonts where this says, and below HOME where nothing does; it reads it once.
    with TemporaryDirectory() as cache:
        os.environ.setdefault("MPLCONFIGDIR", cache)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    shares, course = figure.subplots(1, 2)
    for label, samples in sorted(record.samples.items()):
        _draw_shares(shares, label, samples)
        _draw_course(course, label, samples, record)
    _finish(shares, course)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise ConfigurationError(f"--plot: {path}: {error.strerror}") from None


def _draw_shares(axes: Any, label: str, samples: Samples) -> None:
    """Latency over the share of requests, with the tail stretched: each nine takes as much room as the one before."""
    ordered = np.sort(samples.latencies)
    above = 1 - np.arange(len(ordered)) / len(ordered)
    axes.step(1 / above, 1000 * ordered, where="post", label=label)


def _draw_course(axes: Any, label: str, samples: Samples, record: LoadRecord) -> None:
    """Median and p99 of each slice of time."""
    bins = ((samples.due - record.begin) / record.seconds * NUM_BINS).astype(int)
    latencies = samples.latencies
    slices = [(each, np.sort(latencies[bins == each])) for each in np.unique(bins)]
    times = [(each + 0.5) * record.seconds / NUM_BINS for each, _ in slices]
    (line,) = axes.plot(times, [1000 * percentile(ordered, 0.5) for _, ordered in slices], label=f"{label}, p50")
    tails = [1000 * percentile(ordered, 0.99) for _, ordered in slices]
    axes.plot(times, tails, color=line.get_color(), linestyle=":", label=f"{label}, p99")


def _finish(shares: Any, course: Any) -> None:
    shares.set(xscale="log", yscale="log", xlabel="percent of requests", ylabel="milliseconds")
    shares.set_xticks([1, *(1 / (1 - share) for share in TICKS)], ["0", *(f"{100 * share:g}" for share in TICKS)])
    shares.minorticks_off()
    course.set(yscale="log", xlabel="seconds since the warm-up", ylabel="milliseconds")
    for axes in (shares, course):
        axes.grid(visible=True, alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8, title="steps", title_fontsize=8)
