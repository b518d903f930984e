"""A picture of latencies: the share of requests over milliseconds, and the course over time. Needs matplotlib."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from tidegate.errors import ConfigurationError
from tidegate.loadgen.record import Record, Samples, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_BINS = 60
TICKS = (0.5, 0.9, 0.99, 0.999, 0.9999)


def require_matplotlib() -> None:
    """Tell before the load rather than after it that no plot will come.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigurationError("--plot needs matplotlib: pip install matplotlib, or the extra tidegate[train]")


def draw_latency(path: Path, record: Record, title: str) -> None:
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


def _draw_shares(axes: Axes, label: str, samples: Samples) -> None:
    """Latency over the share of requests, with the tail stretched: each nine takes as much room as the one before."""
    ordered = np.sort(samples.latencies)
    above = 1 - np.arange(len(ordered)) / len(ordered)
    axes.step(1 / above, 1000 * ordered, where="post", label=label)


def _draw_course(axes: Axes, label: str, samples: Samples, record: Record) -> None:
    """Median and p99 of each slice of time."""
    bins = ((samples.due - record.begin) / record.seconds * NUM_BINS).astype(int)
    latencies = samples.latencies
    slices = [(each, np.sort(latencies[bins == each])) for each in np.unique(bins)]
    times = [(each + 0.5) * record.seconds / NUM_BINS for each, _ in slices]
    (line,) = axes.plot(times, [1000 * percentile(ordered, 0.5) for _, ordered in slices], label=f"{label}, p50")
    tails = [1000 * percentile(ordered, 0.99) for _, ordered in slices]
    axes.plot(times, tails, color=line.get_color(), linestyle=":", label=f"{label}, p99")


def _finish(shares: Axes, course: Axes) -> None:
    shares.set(xscale="log", yscale="log", xlabel="percent of requests", ylabel="milliseconds")
    shares.set_xticks([1, *(1 / (1 - share) for share in TICKS)], ["0", *(f"{100 * share:g}" for share in TICKS)])
    shares.minorticks_off()
    course.set(yscale="log", xlabel="seconds since the warm-up", ylabel="milliseconds")
    for axes in (shares, course):
        axes.grid(visible=True, alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8, title="steps", title_fontsize=8)
