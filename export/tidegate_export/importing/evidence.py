"""How likely an input and an output are one state, by their names and by what flows from one to the other.

Names that agree (`h_in` and `h_out`) order what is tried, and decide alone only where nothing can be tried.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache

from tidegate_export.importing.flow import Flow, Link

_CARRIED = 3.0
"""A recurrent layer begins with the input and ends with the output: more than names can say."""

_LINKS = {Link.MOVED: 4.0, Link.ELEMENTWISE: 2.0, Link.MIXED: 0.5, Link.NONE: 0.0}
STRONG = 2.4
"""Moved values, or names that agree."""

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


_DIRECTIONS_WORDS = """
    in out input output inputs outputs new next prev previous past present cur current old init initial final
    last updated update before after return ret t1
"""
_DIRECTIONS = frozenset(_DIRECTIONS_WORDS.split())
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_MADE_UP = re.compile(r"onnx::|\d+$")
"""Names that an exporter numbers, after the operator that reads them."""

_PORT = re.compile(r":\d+$")
"""TensorFlow numbers the outputs of a node: `h:0`."""

_SUFFIX = re.compile(r"(?<=\w)(n|N|0|1|in|out|In|Out)$")

_BATCH = re.compile(r"(^|_)(batch|batches|bs|bsz|n|b|nb)($|_|size|\d)", re.IGNORECASE)
_TIME = re.compile(
    r"(^|_)(t|l|s|time|times|seq|sequence|len|length|frames?|steps?|timesteps?|samples)($|_|\d)", re.IGNORECASE
)


def similarity(left: str, right: str) -> float:
    """Say how likely two names are one state's, before and after: 0 (no hint) to 1 (`h_in`, `h_out`)."""
    left, right = _PORT.sub("", left), _PORT.sub("", right)
    if is_made_up(left) or is_made_up(right):
        return 0.0
    words, others = _words(left), _words(right)
    if words and words == others:
        return 1.0
    if _stem(left) == _stem(right) and _stem(left):
        return 0.9
    ratio = SequenceMatcher(None, " ".join(words), " ".join(others)).ratio() if words and others else 0.0
    return 0.6 * ratio if ratio > 0.75 else 0.0


def is_made_up(name: str) -> bool:
    """Whether an exporter made a name up: it tells nothing."""
    return _MADE_UP.match(name) is not None


def agreement(left: str, right: str) -> float:
    """Say whether two names are one state's: 1 if they agree in a word, ½ if only in a number, as `input_2` and
    `output_2` do, 0 if not.
    """
    if similarity(left, right) < 0.9:
        return 0.0
    return 1.0 if re.search("[a-z]", "".join(_words(left)) or _stem(left)) else 0.5


def batch_likelihood(name: str) -> float:
    return 1.0 if _BATCH.search(name) else 0.0


def time_likelihood(name: str) -> float:
    return 1.0 if _TIME.search(name) else 0.0


def is_length(name: str) -> bool:
    """Whether an integer input of this name says how long each row is."""
    return re.search(r"len|num_frames|n_frames", name, re.IGNORECASE) is not None


@cache
def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name) if word.lower() not in _DIRECTIONS)


@cache
def _stem(name: str) -> str:
    """`h0`, `hN`, `hn` and `hOut` all are `h`."""
    last = re.split(r"[./:]", name)[-1]
    return _SUFFIX.sub("", re.sub(r"[_-]", "", last)).lower()
