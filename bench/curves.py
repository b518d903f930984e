"""`python -m bench.curves`: how rates grow with sessions, with the size of the model and with the length of a chunk.

Every point is the median of interleaved rounds of tidegate's two kinds of stream and of their floor: the bare gRPC
echo, or onnxruntime alone with the same batch and length. Writes CURVES.json, CURVES.md and a plot for each curve.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import client, machine
from bench.client import Mode, drive
from bench.measure import Plan, interleaved
from bench.processes import ROOT, Running, floor, server
from bench.raw import bundle_of, raw_steps
from bench.report import number
from bench.sessions import MODEL, echoed, sessions
from tests.bundles import write_tiny_bundle

SESSIONS = (1, 4, 16, 64, 256, 1024)
HIDDEN = (64, 128, 256, 512, 1024)
CHUNKS = (1, 4, 16, 64, 256, 1024)
STEPPING, LANES = 64, 256
RAW = "onnxruntime alone"

Rate = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Steps a second over ``xs``, a list for each of ``series``."""

    name: str
    title: str
    label: str
    xs: Sequence[int]
    series: Mapping[str, Sequence[float]]


def by_sessions(plan: Plan) -> Curve:
    """One step a message; in columns all sessions are lanes of one stream."""
    with server() as serving, floor("grpc_echo") as echo:

        def rates(count: int) -> dict[str, Rate]:
            streams: client.Options = plan.load | {"connections": count}
            return {
                "streams": partial(_steps, "stream", serving, streams, count),
                "one columnar stream": partial(_steps, "columnar", serving, plan.load | {"lanes": count}, count),
                "echo of streams": lambda: drive("stream", echo, {**streams, "echo": "yes"}, echoed(count)).steps_per_s,
                RAW: lambda: raw_steps(count, plan.seconds).steps_per_s,
            }

        return _curve("sessions", "Two-layer LSTM of 256, one step a message", SESSIONS, rates, plan)


def by_hidden_size(plan: Plan) -> Curve:
    """Two-layer LSTMs with random weights."""
    with ExitStack() as stack:
        bundles = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for hidden in HIDDEN:
            write_tiny_bundle(bundles, f"lstm-{hidden}", hidden=hidden)
        serving = stack.enter_context(server(bundles=bundles))

        def rates(hidden: int) -> dict[str, Rate]:
            model, load = f"lstm-{hidden}", plan.load
            graph = bundle_of(model, bundles)
            return {
                f"{STEPPING} streams": partial(
                    _steps, "stream", serving, load | {"connections": STEPPING}, STEPPING, model
                ),
                f"columnar stream of {LANES}": partial(
                    _steps, "columnar", serving, load | {"lanes": LANES}, LANES, model
                ),
                f"{RAW}, {STEPPING} rows": lambda: raw_steps(STEPPING, plan.seconds, bundle=graph).steps_per_s,
                f"{RAW}, {LANES} rows": lambda: raw_steps(LANES, plan.seconds, bundle=graph).steps_per_s,
            }

        return _curve("hidden size", "Two-layer LSTM, one step a message", HIDDEN, rates, plan)


def by_chunk_length(plan: Plan) -> Curve:
    """The same sessions, with more steps in a message."""
    with server() as serving:

        def rates(chunk: int) -> dict[str, Rate]:
            load = plan.load | {"connections": STEPPING, "chunk": chunk, "seconds": plan.seconds * max(1, chunk / 256)}
            return {
                f"{STEPPING} streams": partial(_steps, "stream", serving, load, STEPPING),
                RAW: lambda: raw_steps(STEPPING, plan.seconds, length=chunk).steps_per_s,
            }

        return _curve("steps a message", f"Two-layer LSTM of 256, {STEPPING} sessions", CHUNKS, rates, plan)


CURVES = {"sessions": by_sessions, "hidden": by_hidden_size, "chunks": by_chunk_length}


def _steps(mode: Mode, serving: Running, load: client.Options, count: int, model: str = MODEL) -> float:
    with sessions(serving, count, model) as ids:
        return drive(mode, serving, load, ids).steps_per_s_between


def _curve(label: str, title: str, xs: Sequence[int], rates: Callable[[int], dict[str, Rate]], plan: Plan) -> Curve:
    series: dict[str, list[float]] = {}
    for x in xs:
        rounds = interleaved(plan.rounds, rates(x))
        for name in rounds.names:
            series.setdefault(name, []).append(rounds.median(name, float))
    return Curve(label.replace(" ", "-"), title, label, xs, series)


def draw(folder: Path, curve: Curve) -> str:
    """Write the curve's plot into ``folder``; returns its name."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, rates in curve.series.items():
        axes.plot(curve.xs, rates, marker="o", label=name, linestyle="--" if RAW in name or "echo" in name else "-")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(curve.xs, [str(x) for x in curve.xs])
    axes.set(xlabel=curve.label, ylabel="steps/s", title=curve.title)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    file = folder / f"curve-{curve.name}.png"
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file.name


def to_markdown(curves: Sequence[Curve], description: Mapping[str, str], plan: Plan) -> str:
    """The curves as tables, with their plots."""
    parts = [
        "# Growth curves\n",
        "Written by `make bench-curves`: do not edit. Steps a second, by the method of [RESULTS.md](RESULTS.md).\n",
        f"Medians of {plan.rounds} rounds of {plan.seconds:g} s.\n",
    ]
    for curve in curves:
        parts += [f"## By {curve.label}\n", f"{curve.title}.\n", _table(curve)]
        parts.append(f"![{curve.label}](plots/curve-{curve.name}.png)\n")
    parts.append("Machine: " + "; ".join(f"{name} {value}" for name, value in description.items()) + ".\n")
    return "\n".join(parts)


def _table(curve: Curve) -> str:
    lines = [f"| {curve.label} | " + " | ".join(curve.series) + " |", "| ---: |" + " ---: |" * len(curve.series)]
    for index, x in enumerate(curve.xs):
        lines.append(f"| {x} | " + " | ".join(number(rates[index]) for rates in curve.series.values()) + " |")
    return "\n".join(lines) + "\n"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    curves: Annotated[str, typer.Option(help="Which, with commas between.")] = ",".join(CURVES),
    seconds: Annotated[float, typer.Option(help="Of one measurement.")] = 1.5,
    rounds: Annotated[int, typer.Option(min=1, help="Of each point.")] = 3,
    output: Annotated[Path, typer.Option(help="Directory.")] = ROOT / "bench",
) -> None:
    """Measure and write."""
    plan = Plan(seconds, rounds, warmup=0.3)
    console, measured, description = Console(), [], machine.describe()
    client.build()
    for name in curves.split(","):
        with console.status(name):
            curve = CURVES[name](plan)
        console.print(_table(curve), soft_wrap=True)
        draw(output / "plots", curve)
        measured.append(curve)
    document = [asdict(curve) for curve in measured]
    (output / "CURVES.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (output / "CURVES.md").write_text(to_markdown(measured, description, plan), encoding="utf-8")


if __name__ == "__main__":
    app()
