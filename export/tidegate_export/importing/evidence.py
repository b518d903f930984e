"""How likely an input and an output are one state, by their names and by what flows from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidegate_export.importing.flow import Flow, Link
from tidegate_export.importing.naming import similarity

_CARRIED = 3.0
"""A recurrent layer begins with the input and ends with the output: more than names can say."""

_LINKS = {Link.MOVED: 4.0, Link.ELEMENTWISE: 2.0, Link.MIXED: 0.5, Link.NONE: 0.0}
STRONG = 2.4
"""Moved values, or names that agree."""
MEDIUM = 2.0
"""Scaled and added element by element: a cell's state, but a residual connection too."""

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for each pair of an input and an output."""

    links: dict[Pair, Link]
    depends: dict[str, frozenset[str]]
    """By output: the inputs that it hangs on in any way."""
    carried: frozenset[Pair]

    @classmethod
    def gather(cls, inputs: Sequence[str], outputs: Sequence[str], flow: Flow) -> Evidence:
        reached = flow.input_links(inputs)
        values = {value.name: value for value in flow.graph.outputs}
        links = {(a, b): reached[a].get(values[b], Link.NONE) for a in inputs for b in outputs}
        depends = {b: frozenset(a for a in inputs if links[a, b] is not Link.NONE) for b in outputs}
        return cls(links, depends, frozenset(flow.carried(reached)))

    def score(self, pair: Pair) -> float:
        return _LINKS[self.links[pair]] + _CARRIED * (pair in self.carried) + 4 * similarity(*pair)

    def reason(self, pair: Pair) -> str:
        """Say in words what speaks for a pair."""
        words = []
        if self.links[pair] <= Link.ELEMENTWISE:
            words.append("the graph carries one to the other")
        if similarity(*pair) >= 0.6:
            words.append("their names agree")
        return ", ".join(words) or "nothing but shape and dtype speaks for it"
