"""Pictures of rows: how far each is from its target, and latencies. Needs matplotlib (the `train` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.measure import Row

GOOD, BAD, GREY = "#2a9d8f", "#e76f51", "#8d99ae"
WIDEST = 2.0


def draw(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Write the plots that the rows give into ``folder``; returns their names."""
    import matplotlib as mpl

    mpl.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    measured = [row for row in rows if row.share is not None]
    stepping = [row for row in rows if "server_p50_us" in row.details]
    names = []
    if measured:
        names.append(_draw_targets(folder / "targets.png", measured))
    if stepping:
        names.append(_draw_latency(folder / "latency.png", stepping))
    if peers := [row for row in rows if row.row.startswith("peer-") and row.value is not None]:
        names.append(_draw_peers(folder / "peers.png", peers))
    return names


def _draw_targets(file: Path, rows: Sequence[Row]) -> str:
    """A bar a row, as long as the share of its target that it reaches; the line at 1 is the target."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.2), layout="constrained")
    shares = [row.share or 0.0 for row in rows]
    bars = axes.barh(
        [row.row for row in rows],
        [min(share, WIDEST) for share in shares],
        color=[GOOD if row.met else BAD for row in rows],
    )
    axes.bar_label(bars, [f"{share:.2f}" if share <= WIDEST else f"> {WIDEST:g}" for share in shares], padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xlim=(0, WIDEST * 1.1), xlabel=f"share of the target reached (1: met; cut at {WIDEST:g})")
    axes.set_title("Targets: green is met, by the rate or by the rule of CPU time", fontsize=10)
    axes.invert_yaxis()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file.name


def _draw_peers(file: Path, rows: Sequence[Row]) -> str:
    """A peer's steps a second as a bar, and tidegate's of the same minutes as another."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.6 * len(rows) + 1.2), layout="constrained")
    for offset, label, rates, colour in (
        (-0.2, "tidegate, gRPC streams", [row.floor or 0.0 for row in rows], GOOD),
        (0.2, "the peer", [row.value or 0.0 for row in rows], GREY),
    ):
        bars = axes.barh([at + offset for at in range(len(rows))], rates, 0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3)
    axes.set_yticks(range(len(rows)), [row.row.removeprefix("peer-") for row in rows])
    axes.set(xlabel="steps/s, closed loop of 64 sessions")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file.name


def _draw_latency(file: Path, rows: Sequence[Row]) -> str:
    """p50 and p99 of the single steps, beside those of the echo."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    series = [("server_p50_us", GOOD), ("server_p99_us", BAD), ("floor_p50_us", GREY), ("floor_p99_us", "black")]
    for index, (name, colour) in enumerate(series):
        places = [at + (index - 1.5) * 0.2 for at in range(len(rows))]
        label = name.removesuffix("_us").replace("_", " ").replace("floor", "echo")
        axes.bar(places, [row.details[name] / 1000 for row in rows], 0.19, color=colour, label=label)
    axes.set_xticks(range(len(rows)), [row.row for row in rows], rotation=20, ha="right")
    axes.set(ylabel="milliseconds, closed loop of 64 sessions")
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file.name
