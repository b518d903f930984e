"""How well the control charts of the ready-made bundles work: false alarms, and how long a real change goes unseen.

`make bench-drift` writes its table into docs/monitoring.md and its plot beside it. Needs torch and the training data,
and Debian's bible-kjv with bible-kjv-text. Everything is seeded: the same bundles give the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from bench.drift.figures import TOGETHER, Delays, FalseAlarms, delays, false_alarms
from bench.drift.streams import AFTER, BEFORE, Case, load_cases, text_cases
from tidegate.bundle import Bundle, read_bundle
from tidegate.drift import Chart

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
PAGE, PLOT = ROOT / "docs" / "monitoring.md", ROOT / "docs" / "images" / "drift.png"
BEGIN, END = "<!-- make bench-drift writes from here -->", "<!-- to here -->"
BUNDLES = ("shakespeare-lstm", "shakespeare-gru", "load-lstm")

NORMAL, WARNING, DRIFTED = "#8d99ae", "#e9c46a", "#e76f51"


def main() -> None:
    """Measure, and write the table and the plot."""
    bundles = [read_bundle(ROOT / "bundles" / name / "1") for name in BUNDLES]
    cases = {
        bundle.manifest.name: text_cases(bundle) if bundle.manifest.task == "next_token" else load_cases(bundle)
        for bundle in bundles
    }
    lines = [BEGIN, "", *_false_table(bundles), "", *_delay_table(cases), "", END]
    page = PAGE.read_text("utf-8")
    start, end = page.index(BEGIN), page.index(END) + len(END)
    PAGE.write_text(page[:start] + "\n".join(lines) + page[end:], "utf-8")
    draw([(name, cases[name][1]) for name in ("shakespeare-lstm", "load-lstm")])
    print("\n".join(lines))  # noqa: T201 - what a benchmark does


def _false_table(bundles: Sequence[Bundle]) -> Iterator[str]:
    yield "| model | block | in control | correlation | limits | blocks between false alarms | 64 sessions | unseen |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for bundle in bundles:
        drift, alarms = bundle.manifest.drift, false_alarms(bundle)
        assert drift is not None
        yield (
            f"| {bundle.manifest.name} | {drift.block} | {drift.mean:.2f} ± {drift.spread:.2f} | "
            f"{drift.autocorrelation:.2f} | {drift.warning.width:.2f}, {drift.drift.width:.2f} | {_told(alarms)} |"
        )


def _told(alarms: FalseAlarms) -> str:
    warning, drift = alarms.learned
    count, blocks = alarms.unseen
    mixed = "over 30,000" if alarms.mixed > 30_000 else f"{alarms.mixed:,.0f}"
    return f"{warning:,.0f}, {drift:,.0f} | {mixed} | {count} in {blocks:,}"


def _delay_table(cases: dict[str, list[Case]]) -> Iterator[str]:
    yield (
        "| model | change | warning | drift | nine of ten | steps | seen | one chart for "
        f"{TOGETHER} sessions, blocks of all |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, some in cases.items():
        for case in some:
            yield f"| {name} | {case.change} | {_row(delays(case), case)} |"


def _row(found: Delays, case: Case) -> str:
    drift = _quantile(found.drift, 0.5)
    seen = sum(each is not None for each in found.drift) / len(found.drift)
    columns = [
        _blocks(_quantile(found.warning, 0.5)),
        _blocks(drift),
        _blocks(_quantile(found.drift, 0.9)),
        "–" if drift is None else f"{drift * case.drift.block:,}",
        f"{seen:.0%}",
        "–" if found.together is None else f"{found.together}",
    ]
    return " | ".join(columns)


def _quantile(delays: Sequence[int | None], share: float) -> int | None:
    """The delay that this share of the streams does not exceed; None where fewer were seen."""
    ordered = sorted(np.inf if each is None else each for each in delays)
    value = ordered[int(np.ceil(share * len(ordered))) - 1]
    return None if np.isinf(value) else int(value)


def _blocks(delay: int | None) -> str:
    return f"> {AFTER}" if delay is None else str(delay)


def draw(cases: Sequence[tuple[str, Case]]) -> None:
    """Draw the charts of some streams over the change, with their limits."""
    figure, panels = plt.subplots(1, len(cases), figsize=(11, 3.8), layout="constrained")
    for axes, (name, case) in zip(panels, cases, strict=True):
        _draw_case(axes, f"{name}: {case.change}", case)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _draw_case(axes: Axes, title: str, case: Case) -> None:
    chart, blocks = Chart(case.drift), np.arange(-BEFORE, AFTER) + 1
    for means in case.streams[:24]:
        charted, averages = chart.start(), []
        for mean in means[: BEFORE + AFTER]:
            charted = chart.advance(charted, mean)
            averages.append(charted.ewma)
        axes.plot(blocks, averages, color=NORMAL, linewidth=0.7, alpha=0.7)
    for kind, color in (("warning", WARNING), ("drift", DRIFTED)):
        limits = [chart.limits(count, kind) for count in range(1, len(blocks) + 1)]  # type: ignore[arg-type]
        for index, label in ((0, None), (1, f"{kind} limit")):
            axes.plot(blocks, [each[index] for each in limits], color=color, linewidth=1.6, label=label)
    axes.axhline(case.drift.mean, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel="blocks since the change", ylabel="moving average of surprise")
    axes.legend(loc="lower right", fontsize=8)


if __name__ == "__main__":
    main()
