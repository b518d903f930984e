"""Search random graphs for one that `tidegate import` gets wrong; figures as a table and JSON.

usage: python -m tests.search [--modules] [--graphs N] [--seed N] [--kind KIND] [--keep DIR] [--json FILE]
                              [--seconds S]

Ends with 1 where a graph was accepted though it streams wrongly, or something crashed. `--graphs 1 --seed N --keep DIR`
shows one again: its file, its truth and what was answered. `--modules` searches random PyTorch modules, by what
`tidegate export` makes of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.search.generate import KINDS, make_case
from tests.search.judge import GOOD, Outcome, Verdict, judge
from tests.search.truth import Case

if TYPE_CHECKING:
    from tests.search.modules import ModuleCase

SAVED_EVERY = 50
"""Graphs: a run that is stopped leaves the figures of those before."""


def main() -> int:
    arguments = _arguments()
    os.environ.setdefault("TIDEGATE_STORE", "none")
    table: Counter[tuple[str, Outcome]] = Counter()
    begun = time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.graphs):
        case, verdict = _module(seed) if arguments.modules else _graph(seed, arguments.kind)
        table[case.kind, verdict.outcome] += 1
        if arguments.keep is not None and (verdict.outcome not in GOOD or arguments.graphs == 1):
            _keep(arguments.keep, case, verdict)
        if arguments.json is not None and (seed - arguments.seed) % SAVED_EVERY == SAVED_EVERY - 1:
            _save(arguments.json, table)
        if arguments.seconds and time.monotonic() - begun > arguments.seconds:
            break
    _say(as_table(table))
    if arguments.json is not None:
        _save(arguments.json, table)
    return int(any(table[key] for key in table if key[1] in {Outcome.WRONG, Outcome.CRASH}))


def _graph(seed: int, kind: str | None) -> tuple[Case | ModuleCase, Verdict]:
    case = make_case(seed, kind)
    return case, judge(case)


def _module(seed: int) -> tuple[Case | ModuleCase, Verdict]:
    # torch takes seconds to import.
    from tests.search.judge_modules import judge_module
    from tests.search.modules import make_module

    case = make_module(seed)
    return case, judge_module(case)


def _save(path: Path, table: Counter[tuple[str, Outcome]]) -> None:
    path.write_text(json.dumps(as_json(table), indent=2) + "\n")


def as_json(table: Counter[tuple[str, Outcome]]) -> dict[str, dict[str, int]]:
    """Return the number of graphs by kind and outcome."""
    kinds = sorted({kind for kind, _ in table})
    return {kind: {str(outcome): table[kind, outcome] for outcome in Outcome if table[kind, outcome]} for kind in kinds}


def as_table(table: Counter[tuple[str, Outcome]]) -> str:
    """Return the figures as Markdown."""
    lines = ["| kind | graphs | " + " | ".join(Outcome) + " |", "| --- | ---: |" + " ---: |" * len(Outcome)]
    kinds = sorted({kind for kind, _ in table})
    for kind in [*kinds, "all"]:
        counts = [sum(table[key] for key in table if key[1] is it and kind in {"all", key[0]}) for it in Outcome]
        lines.append(f"| {kind} | {sum(counts)} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def _keep(folder: Path, case: Case | ModuleCase, verdict: Verdict) -> None:
    """Write a case down: the file, the truth, and the command line's answer."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{verdict.outcome}: {case.kind}",
        f"said: {dict(verdict.options)}",
        f"answered with nothing said: {verdict.first}",
        f"answered: {verdict.told}",
        f"reach {case.reach}",
    ]
    if isinstance(case, Case):
        (folder / f"{case.seed}.onnx").write_bytes(case.model.SerializeToString())
        lines += [
            f"made of {' '.join(case.notes)}",
            f"one run is one step: {case.is_frame}; constants {dict(case.constants)}; lengths {case.lengths}",
            *(f"data {item.name} {item.dtype} {list(item.axes)} {item.num_ids or ''}" for item in case.data),
            *(f"state {item.input} → {item.output} {item.dtype} {list(item.axes)}" for item in case.states),
            f"outputs {list(case.outputs)}",
        ]
    else:
        lines += [f"input {case.shape}", str(case.module)]
    (folder / f"{case.seed}.txt").write_text("\n".join(lines) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.search")
    parser.add_argument("--modules", action="store_true")
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
