"""Rows as files: RESULTS.json for programs, RESULTS.md for people. Knows how figures are written, not what they say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.measure import Plan, Row

METHOD = """
`make bench` starts server, floors and raw runs as processes of their own on this machine and drives them by one
compiled, single-threaded client (`bench/client`), whose own CPU time is on the same cores. What is compared runs in
turns (A B A B …); a ratio is taken in each round, and the table has the median of the ratios with the least and the
greatest. Before the rounds the client's first answers are compared with onnxruntime run here; in all rounds every reply
must have the position that it should (the Open Inference Protocol tells none: there it must have its tensors), and one
error voids the run.

- **gRPC echo**: grpc.aio with the server's channel options and event loop (uvloop); the request is deserialized, a
  ready protobuf of a step's reply (top 1, surprise; of the Open Inference Protocol the tensors) serialized for each
  message.
- **perf_analyzer**: Triton's load generator with 64 sequences of 2,000 steps, on the same cores, after the rounds; its
  figures are in the details.
- **ASGI and WebSocket echo**: a bare ASGI function on uvicorn with the server's settings (httptools,
  websockets-sansio); the body is read and dropped, a ready one of the same size answered. Starlette and FastAPI echoes,
  which parse and write JSON, stand beside it.
- **raw**: `InferenceSession.run` on the same graph, one thread, states fed back, in a process of its own.
- **peers**: `make bench-peers`, in a run of its own: each peer and tidegate's stream in turns, the peer's steps held
  against tidegate's; the client asks for one step at a time in every session. `bench/peers` has their applications.
- **stores**: `make bench-stores`, in a run of its own, rounds and seconds in the details: servers with one store each,
  and one with ephemeral sessions, in turns. Files and Redis are on this machine and on the repository's disk.
- **CPU per step**: user and system time of the server process with all its threads (/proc), over exactly the time that
  is measured. Noise disturbs it least.
"""


def to_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> list[Row]:
    """Read what `to_json` wrote."""
    return [Row(**{**row, "spread": row["spread"] and tuple(row["spread"])}) for row in json.loads(text)]


def to_markdown(rows: Sequence[Row], machine: Mapping[str, str], plan: Plan, plots: Iterable[str]) -> str:
    """The report; ``plots`` are files beside it."""
    met, measured = sum(row.met is True for row in rows), sum(row.met is not None for row in rows)
    parts = [
        "# Benchmark results\n",
        f"Written by `make bench`: do not edit. {met} of {measured} measured targets are met.\n",
        _table(rows),
        "\n".join(f"![{name}]({name})" for name in plots) + "\n",
        "## Row by row\n",
        "\n".join(_section(row) for row in rows if row.note or row.details),
        "## Method",
        METHOD,
        f"Here: {plan.rounds} rounds of {plan.seconds:g} s after {plan.warmup:g} s of warm-up.\n",
        "## Machine\n",
        "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in machine.items()) + "\n",
    ]
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    head = "| row | value | floor | ratio (spread) | target | met |\n| --- | ---: | ---: | ---: | --- | --- |\n"
    return head + "\n".join(_line(row) for row in rows) + "\n"


def _line(row: Row) -> str:
    value = f"{number(row.value)} {row.unit}" if row.value is not None else "–"
    bounds = "" if row.spread is None else f" ({number(row.spread[0])}–{number(row.spread[1])})"
    ratio = f"{number(row.ratio)}{bounds}" if row.ratio is not None else bounds.strip() or "–"
    cells = (row.row, value, number(row.floor), ratio, row.target, verdict(row))
    return "| " + " | ".join(cells) + " |"


def one_line(row: Row) -> str:
    """A row for the terminal."""
    if row.value is None:
        return f"{row.row}: {row.note}"
    ratio = "" if row.ratio is None else f", ratio {number(row.ratio)} to {number(row.floor)}"
    goal = f"; {row.target}: {'met' if row.met else 'MISSED'}" if row.met is not None else ""
    return f"{row.row}: {number(row.value)} {row.unit}{ratio}{goal} {row.note}"


def verdict(row: Row) -> str:
    """Whether the target is met; a dash where there is none to meet."""
    if row.met is None:
        return "not measured" if row.value is None else "–"
    return "yes" if row.met else "**no**"


def _section(row: Row) -> str:
    lines = [f"### {row.row}\n"]
    if row.note:
        lines.append(f"{row.note}\n")
    if row.details:
        lines.append("| figure | |\n| --- | ---: |")
        lines += [f"| {name.replace('_', ' ')} | {number(value)} |" for name, value in row.details.items()]
        lines.append("")
    return "\n".join(lines)


def number(value: Any) -> str:
    """Four significant digits, large numbers whole with separators; a text as it is."""
    if value is None:
        return "–"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def is_of_others(row: Row) -> bool:
    """Whether not `make bench` measures the row but `make bench-peers` or `make bench-stores`."""
    return row.row.startswith(("peer-", "store-")) or row.row.endswith("-peers")


def merged(rows: Iterable[Row], newer: Iterable[Row]) -> list[Row]:
    """The rows with those of ``newer`` in the place of what has their name, the others after the last."""
    by_name = {row.row: row for row in rows} | {row.row: row for row in newer}
    return list(by_name.values())


@dataclass(frozen=True, slots=True)
class Written:
    """A report on disk: its rows, and on what machine and by which plan they were measured."""

    rows: list[Row]
    machine: Mapping[str, str]
    plan: Plan


def read(folder: Path) -> Written | None:
    """What `write` wrote there; None where nothing is."""
    if not (folder / "RUN.json").exists():
        return None
    run = json.loads((folder / "RUN.json").read_text(encoding="utf-8"))
    rows = from_json((folder / "RESULTS.json").read_text(encoding="utf-8"))
    return Written(rows, run["machine"], Plan(**run["plan"]))


def write(folder: Path, rows: Sequence[Row], machine: Mapping[str, str], plan: Plan, plots: Iterable[str]) -> None:
    """Write the report for people, its rows for programs, and RUN.json, by which rows can be added later."""
    run = {"machine": machine, "plan": asdict(plan)}
    (folder / "RUN.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    (folder / "RESULTS.json").write_text(to_json(rows), encoding="utf-8")
    (folder / "RESULTS.md").write_text(to_markdown(rows, machine, plan, plots), encoding="utf-8")
