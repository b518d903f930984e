"""Finds which output every state comes out of, by trying: the right pairs, and no others, carry a sequence on.

A sequence is run whole, and again in two pieces with the states of the first fed to the second. States are assigned one
by one, those first on which the fewest outputs hang, and an output is compared as soon as all that it hangs on is
assigned: so a wrong pair is found out early, and n layers cost about n² runs, not n! of them.

Where one run is one step, nothing can be tried: `likeliest_pairs` goes by what speaks for each pair,
or asks the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tidegate.bundle import TIME
from tidegate.proof import ABSOLUTE, excess
from tidegate_export.importing.evidence import MEDIUM, STRONG, Evidence
from tidegate_export.importing.foreign import Array, Arrays, Foreign
from tidegate_export.importing.plan import Axes
from tidegate_export.importing.refusals import RejectedError
from tidegate_export.importing.request import SaidRoles

MOST_RUNS = 2000
_HEAD, _TAIL = 3, 4
"""Steps of the two pieces."""
STEPS = _HEAD + _TAIL


class NotStreamableError(Exception):
    """No pairs carry the sequence on; the message says what differs."""


@dataclass(slots=True)
class Search:
    """One search over one graph.

    Args:
        foreign: The graph.
        inputs: A sequence of `STEPS` steps for every input with a time axis, and what the others are fed throughout.
        axes: Axes of inputs and outputs.
        initial: First states by input.
        candidates: By state input: the outputs that it may come out of, likeliest first.
        evidence: What hangs on what.
        slack: What may differ, as a share of an output's variation, where the graph rounds.
        lengths: The input that says how many steps there are, if any.
        overlaps: By input: how many steps it has in front that the graph wants again.
        tolerance: What equal means where nothing rounds.
    """

    foreign: Foreign
    inputs: Arrays
    axes: Mapping[str, Axes]
    initial: Arrays
    candidates: Mapping[str, Sequence[str]]
    evidence: Evidence
    slack: float = 0.0
    lengths: str | None = None
    overlaps: Mapping[str, int] = field(default_factory=dict)
    tolerance: float = ABSOLUTE
    num_runs: int = 0
    whole: Arrays = field(default_factory=dict)
    head: Arrays = field(default_factory=dict)

    def pairs(self) -> dict[str, str]:
        """Return the output of every state.

        Raises:
            NotStreamableError: None, or not within `MOST_RUNS` runs.
        """
        self.whole = self._run(0, STEPS, self.initial)
        self.head = self._run(0, _HEAD, self.initial)
        stateless = [name for name in self.foreign.outputs if not self._needs(name)]
        differing = self._differing({}, stateless)
        if differing:
            raise NotStreamableError(f"{differing} remembers earlier steps, and hangs on no state")
        found = self._assign({}, self._order(), frozenset(stateless))
        if found is None:
            raise NotStreamableError(self._failure())
        return found

    def _assign(self, pairs: dict[str, str], rest: Sequence[str], checked: frozenset[str]) -> dict[str, str] | None:
        if not rest:
            return pairs
        for output in self.candidates[rest[0]]:
            if output in pairs.values():
                continue
            more = {**pairs, rest[0]: output}
            ready = [name for name in self.foreign.outputs if name not in checked and self._needs(name) <= more.keys()]
            if ready and self._differing(more, ready):
                continue
            found = self._assign(more, rest[1:], checked.union(ready))
            if found is not None:
                return found
        return None

    def _order(self) -> list[str]:
        """Return the states so that outputs can be compared as early as possible."""
        order: list[str] = []
        for output in sorted(self.foreign.outputs, key=lambda name: len(self._needs(name))):
            order += sorted(self._needs(output) - set(order), key=list(self.candidates).index)
        return order + [name for name in self.candidates if name not in order]

    def _needs(self, output: str) -> frozenset[str]:
        return self.evidence.depends[output] & self.candidates.keys()

    def _differing(self, pairs: Mapping[str, str], outputs: Sequence[str]) -> str | None:
        """Run the second piece with some states carried on; return the first of `outputs` that is not as it should."""
        if not outputs:
            return None
        states = {name: self.head[pairs[name]] if name in pairs else first for name, first in self.initial.items()}
        tail = self._run(_HEAD, STEPS, states)
        return next((name for name in outputs if not self._is_right(name, tail[name])), None)

    def _is_right(self, output: str, found: Array) -> bool:
        wanted = self.whole[output]
        if TIME in self.axes[output]:
            wanted = wanted.take(range(_HEAD, STEPS), axis=self.axes[output].index(TIME))
        slack = self.slack * float(np.std(wanted.astype(np.float64))) if self.slack and wanted.size else 0.0
        return excess(wanted, found) <= max(self.tolerance, slack)

    def _run(self, start: int, stop: int, states: Arrays) -> Arrays:
        self.num_runs += 1
        if self.num_runs > MOST_RUNS:
            raise NotStreamableError(f"no pairs of states carry the sequence on within {MOST_RUNS} tries")
        feeds = {name: self._cut(name, array, start, stop) for name, array in self.inputs.items()} | states
        if self.lengths is not None:
            feeds[self.lengths] = np.full_like(self.inputs[self.lengths], stop - start)
        return self.foreign.run(feeds)

    def _cut(self, name: str, array: Array, start: int, stop: int) -> Array:
        if TIME not in self.axes[name]:
            return array
        return array.take(range(start, stop + self.overlaps.get(name, 0)), axis=self.axes[name].index(TIME))

    def _failure(self) -> str:
        """Say which output is wrong when the likeliest pairs are taken."""
        likely: dict[str, str] = {}
        for name, outputs in self.candidates.items():
            likely[name] = next((output for output in outputs if output not in likely.values()), outputs[0])
        told = ", ".join(f"{a} → {b}" for a, b in likely.items())
        differing = self._differing(likely, self.foreign.outputs)
        return f"with {told} carried over, {differing} still depends on where the sequence is cut"


Candidates = Mapping[str, Sequence[str]]
"""By input: the outputs of its shape and dtype."""


def likeliest_pairs(candidates: Candidates, roles: SaidRoles, evidence: Evidence) -> dict[str, str]:
    """Return the states with their outputs; what the caller said in `roles` is final.

    Raises:
        RejectedError: Two ways are equally likely, or something may be a state or not: the caller must say.
    """
    scored = sorted(
        ((evidence.score((a, b)), a, b) for a, outputs in candidates.items() for b in outputs),
        key=lambda item: -item[0],
    )
    pairs = dict(roles.states)
    if roles.is_complete:
        return pairs
    for score, name, output in scored:
        if score >= STRONG and _is_open(name, output, pairs):
            _refuse_tie(score, name, output, [item for item in scored if _is_open(item[1], item[2], pairs)])
            pairs[name] = output
    for score, name, output in scored:
        # A cell's state and a residual connection look alike: somebody must be the input.
        if MEDIUM <= score < STRONG and _is_open(name, output, pairs) and len(pairs) + 1 < len(candidates):
            pairs[name] = output
    _refuse_doubtful(candidates, pairs, roles.data, evidence)
    return pairs


def _is_open(name: str, output: str, pairs: Mapping[str, str]) -> bool:
    return name not in pairs and output not in pairs.values()


def _refuse_tie(score: float, name: str, output: str, open_: Sequence[tuple[float, str, str]]) -> None:
    rivals = [(a, b) for other, a, b in open_ if other == score and (a == name) != (b == output)]
    if rivals:
        told = ", ".join(f"{a}:{b}" for a, b in ((name, output), *rivals))
        raise RejectedError(3, f"these pairs are equally likely: {told}; say which hold: --state INPUT:OUTPUT")


def _refuse_doubtful(
    candidates: Candidates, pairs: Mapping[str, str], told: Collection[str], evidence: Evidence
) -> None:
    """Ask where an input that is no state yet could be one, beside another that surely is none."""
    data = [name for name in candidates if name not in pairs and name not in told]
    could_be = [name for name in data if set(candidates[name]) - set(pairs.values())]
    weak = [name for name, output in pairs.items() if evidence.score((name, output)) < STRONG]
    is_only_data = len(could_be) == len(data) and not told  # somebody must be the input
    is_clear = pairs and len(could_be) <= 1 and (is_only_data or not (could_be or weak))
    doubtful = sorted({*could_be, *weak})
    if doubtful and not is_clear:
        raise RejectedError(
            3,
            f"one run is one step, so nothing proves whether {', '.join(doubtful)} are states: say all of them, "
            "--state INPUT:OUTPUT",
        )
