"""Finds which output every state comes out of, by trying: the right pairs, and no others, carry a sequence on.

A sequence is run whole, and again in two pieces with the states of the first fed to the second. States are assigned one
by one, those first on which the fewest outputs hang, and an output is compared as soon as all that it hangs on is
assigned: so a wrong pair is found out early, and n layers cost about n² runs, not n! of them.

An input that may be data is also tried as such: it then stays the same throughout. First states are what they are said
to be, and random ones too: a state that is only ever multiplied looks right at zero, whatever it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from tidegate.bundle import TIME
from tidegate.proof import ABSOLUTE, excess
from tidegate_export.importing.evidence import Evidence
from tidegate_export.importing.foreign import Array, Arrays, Foreign
from tidegate_export.importing.plan import Axes

MOST_RUNS = 2000
_HEAD, _TAIL = 3, 4
"""Steps of the two pieces."""
STEPS = _HEAD + _TAIL


class NotStreamableError(Exception):
    """No pairs carry the sequence on; the message says what differs."""


Pairs: TypeAlias = dict[str, "str | None"]


@dataclass(frozen=True, slots=True)
class _Begun:
    """What comes of the whole sequence, and of its first piece, from the same first states."""

    initial: Arrays
    whole: Arrays
    head: Arrays


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
        may_be_data: Inputs among the candidates that need not be states.
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
    may_be_data: Collection[str] = ()
    slack: float = 0.0
    lengths: str | None = None
    overlaps: Mapping[str, int] = field(default_factory=dict)
    tolerance: float = ABSOLUTE
    num_runs: int = 0
    begun: list[_Begun] = field(default_factory=list)

    def pairs(self) -> Pairs:
        """Return the output of every state; None of what is data.

        Raises:
            NotStreamableError: None, or not within `MOST_RUNS` runs.
        """
        self.begun = [self._begin(self.initial), *self._begin_at_random()]
        stateless = [name for name in self.foreign.outputs if not self._needs(name)]
        differing = self._differing({}, stateless)
        if differing:
            raise NotStreamableError(f"{differing} remembers earlier steps, and hangs on no state")
        found = self._assign({}, self._order(), frozenset(stateless))
        if found is None:
            raise NotStreamableError(self._failure())
        return found

    def is_data(self, name: str, pairs: Pairs) -> bool:
        """Whether a state of the `pairs` that were found may as well be data: nothing shows the difference."""
        return self._differing({**pairs, name: None}, self.foreign.outputs) is None

    def _begin(self, initial: Arrays) -> _Begun:
        return _Begun(initial, self._run(0, STEPS, initial), self._run(0, _HEAD, initial))

    def _begin_at_random(self) -> Iterator[_Begun]:
        """Yield the same from random states; nothing where the graph cannot bear them (the root of a variance)."""
        rng = np.random.default_rng(7)
        initial = {
            name: (0.5 * rng.standard_normal(first.shape)).astype(first.dtype) if first.dtype.kind == "f" else first
            for name, first in self.initial.items()
        }
        if any(first.dtype.kind == "f" for first in initial.values()):
            begun = self._begin(initial)
            if all(np.isfinite(values).all() for values in begun.whole.values() if values.dtype.kind == "f"):
                yield begun

    def _assign(self, pairs: Pairs, rest: Sequence[str], checked: frozenset[str]) -> Pairs | None:
        if not rest:
            return pairs
        choices: list[str | None] = [output for output in self.candidates[rest[0]] if output not in pairs.values()]
        if rest[0] in self.may_be_data:
            choices.append(None)
        for output in choices:
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

    def _differing(self, pairs: Mapping[str, str | None], outputs: Sequence[str]) -> str | None:
        """Run the second piece with some states carried on; return the first of `outputs` that is not as it should."""
        if not outputs:
            return None
        for begun in self.begun:
            carried = {name: begun.head[output] for name, output in pairs.items() if output is not None}
            tail = self._run(_HEAD, STEPS, {**begun.initial, **carried})
            differing = next(
                (name for name in outputs if not self._is_right(name, begun.whole[name], tail[name])), None
            )
            if differing is not None:
                return differing
        return None

    def _is_right(self, output: str, wanted: Array, found: Array) -> bool:
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
