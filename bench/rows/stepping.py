"""What the rows of single steps have in common: 64 sessions, a step a message, held against a bare echo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from bench.answers import check_answers
from bench.client import Figures, Mode, Options, drive
from bench.measure import Goal, Plan, Rounds, Row, against, interleaved
from bench.metrics import read_counts
from bench.processes import Running, floor, server
from bench.raw import raw_steps
from bench.sessions import echoed, numbered, sessions

SESSIONS = 64


class CpuRule(NamedTuple):
    """What a step's CPU time may be, beside the raw run's: a share of the echo's, and more microseconds."""

    share: float = 1
    more: float = 0

    def __str__(self) -> str:
        echo = "the echo's" if self.share == 1 else f"{self.share:g} of the echo's"
        return f"server CPU per step ≤ {echo} + the raw run's" + (f" + {self.more:g} µs" if self.more else "")


Echo = tuple[str, ...]
Sessions = Callable[[Running], AbstractContextManager[list[str]]]
"""Makes sessions to step on a server, or on an echo, and says what they are called."""


def v1(target: Running) -> AbstractContextManager[list[str]]:
    """Sessions that end with the block; an echo keeps none."""
    return sessions(target, SESSIONS) if "grpc" in target.event else nullcontext(echoed(SESSIONS))


def oip(_: Running) -> AbstractContextManager[list[str]]:
    """Sequences, which a start begins."""
    return nullcontext(numbered(SESSIONS))


class Way(NamedTuple):
    """How steps are sent: the client's mode and further options, and what is stepped in each round."""

    mode: Mode
    named: Sessions = v1
    options: Options = MappingProxyType({})


def against_echo(
    row: str,
    plan: Plan,
    way: Way,
    goal: Goal,
    echo: Echo,
    others: Mapping[str, Echo] | None = None,
    *,
    flags: Sequence[str] = (),
    beside: Callable[[Running], Mapping[str, Any]] = lambda _: {},
) -> Row:
    """Measure server, ``echo`` and, for comparison, ``others`` in turns; each is a floor's name and arguments.

    Args:
        row: The row's name.
        plan: How long and how often.
        way: How steps are sent.
        goal: What is to be reached.
        echo: What the row is held against.
        others: Further floors by name, for comparison.
        flags: The server's for this row.
        beside: Measured on the server after the rounds: further details of the row.
    """
    echoes = {"floor": echo, **(others or {})}
    load = plan.load | {"connections": SESSIONS, **way.options}
    with ExitStack() as stack:
        serving = stack.enter_context(server(*flags, *plan.flags_of(row)))
        floors = {name: stack.enter_context(floor(*command)) for name, command in echoes.items()}
        with way.named(serving) as ids:
            num_checked = check_answers(way.mode, serving, ids, load)
        before = read_counts(serving)
        drives = {"server": partial(_drive, way, serving, load)}
        for name, running in floors.items():
            drives[name] = partial(_drive, way, running, load | {"echo": "yes"})
        rounds = interleaved(plan.rounds, drives)
        rows_per_run = read_counts(serving).since(before).rows_per_run
        more = beside(serving)
    details = _details(rounds, list(echoes)) | {"rows_per_run": rows_per_run, "answers_checked": num_checked, **more}
    return against(row, "steps/s", goal, rounds, ("server", "floor"), lambda figures: figures.steps_per_s, **details)


def or_by_cpu(row: Row, rule: CpuRule, seconds: float) -> Row:
    """The row where a second rule counts as well, that of CPU time."""
    raw = raw_steps(SESSIONS, seconds).cpu_us_per_step
    cost, echo = row.details["server_us_per_step"], row.details["floor_us_per_step"]
    budget = rule.share * echo + raw + rule.more
    is_within = cost <= budget
    note = (
        f"By the rate {'met' if row.met else 'missed'}; by the CPU time of a step {'met' if is_within else 'missed'}: "
        f"{cost:.1f} µs, of {budget:.1f} allowed (echo {echo:.1f}, raw run {raw:.1f})."
    )
    details = {**row.details, "raw_us_per_step": raw, "allowed_us_per_step": budget}
    return replace(row, met=bool(row.met) or is_within, details=details, note=note)


def _drive(way: Way, target: Running, load: Options) -> Figures:
    with way.named(target) as ids:
        return drive(way.mode, target, load, ids)


def _details(rounds: Rounds[Figures], floors: list[str]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    for name in ("server", *floors):
        details |= {
            f"{name}_per_s": rounds.median(name, lambda figures: figures.steps_per_s),
            f"{name}_us_per_step": rounds.median(name, lambda figures: figures.server_us_per_step),
            f"{name}_cpu": rounds.median(name, lambda figures: figures.server_cpu),
            f"{name}_client_cpu": rounds.median(name, lambda figures: figures.client_cpu),
            f"{name}_p50_us": rounds.median(name, lambda figures: figures.p50),
            f"{name}_p99_us": rounds.median(name, lambda figures: figures.p99),
            f"{name}_reply_bytes": rounds.median(name, lambda figures: figures.reply_bytes),
        }
    return details
