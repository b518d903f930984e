"""The loss curve as a picture. Knows matplotlib and the metric rows, nothing of training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tidegate_models.runs import Row

# matplotlib keeps its list of fonts where this says, and below HOME where nothing does; it reads it once.
with TemporaryDirectory() as _cache:
    os.environ.setdefault("MPLCONFIGDIR", _cache)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure


def loss_curve(rows: Sequence[Row], path: Path, *, title: str, unit: str) -> None:
    """Draw training and validation over steps into a PNG; the vertical axis leaves out the first steps' fall."""
    figure = Figure(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    held_out = [(row.step, row.validation) for row in rows if row.validation is not None]
    axes.plot([row.step for row in rows], [row.loss for row in rows], linewidth=1.2, label="training")
    axes.plot(*zip(*held_out, strict=True), marker="o", markersize=3, linewidth=1.5, label="validation")
    best_step, best = min(held_out, key=lambda point: point[1])
    axes.annotate(f"best {best:.3f}", (best_step, best), xytext=(0, -14), textcoords="offset points", ha="right")
    shown = sorted([row.loss for row in rows] + [value for _, value in held_out])
    top = shown[int(len(shown) * 0.95)]
    axes.set_ylim(shown[0] - 0.12 * (top - shown[0] or 1), top + 0.1 * (top - shown[0] or 1))
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)
