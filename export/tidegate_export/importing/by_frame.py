"""Pairs states where one run is one step, so that nothing can be tried: by what speaks for each pair, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate_export.importing.evidence import MEDIUM, STRONG, Evidence
from tidegate_export.importing.refusals import RejectedError

Candidates = Mapping[str, Sequence[str]]
"""By input: the outputs of its shape and dtype."""


def likeliest_pairs(candidates: Candidates, said: Mapping[str, str], evidence: Evidence) -> dict[str, str]:
    """Return the states with their outputs, those that the caller `said` among them.

    Raises:
        RejectedError: Two ways are equally likely, or something may be a state or not: the caller must say.
    """
    scored = sorted(
        ((evidence.score((a, b)), a, b) for a, outputs in candidates.items() for b in outputs),
        key=lambda item: -item[0],
    )
    pairs = dict(said)
    for score, name, output in scored:
        if score >= STRONG and _is_open(name, output, pairs):
            _refuse_tie(score, name, output, [item for item in scored if _is_open(item[1], item[2], pairs)])
            pairs[name] = output
    if said:
        return pairs
    for score, name, output in scored:
        # A cell's state and a residual connection look alike: somebody must be the input.
        if MEDIUM <= score < STRONG and _is_open(name, output, pairs) and len(pairs) + 1 < len(candidates):
            pairs[name] = output
    _refuse_doubtful(candidates, pairs, evidence)
    return pairs


def _is_open(name: str, output: str, pairs: Mapping[str, str]) -> bool:
    return name not in pairs and output not in pairs.values()


def _refuse_tie(score: float, name: str, output: str, open_: Sequence[tuple[float, str, str]]) -> None:
    rivals = [(a, b) for other, a, b in open_ if other == score and (a == name) != (b == output)]
    if rivals:
        told = ", ".join(f"{a}:{b}" for a, b in ((name, output), *rivals))
        raise RejectedError(3, f"these pairs are equally likely: {told}; say which hold: --state INPUT:OUTPUT")


def _refuse_doubtful(candidates: Candidates, pairs: Mapping[str, str], evidence: Evidence) -> None:
    """Ask where an input that is no state yet could be one, beside another that surely is none."""
    data = [name for name in candidates if name not in pairs]
    could_be = [name for name in data if set(candidates[name]) - set(pairs.values())]
    weak = [name for name, output in pairs.items() if evidence.score((name, output)) < STRONG]
    is_clear = pairs and len(could_be) <= 1 and (len(could_be) == len(data) or not (could_be or weak))
    doubtful = sorted({*could_be, *weak})
    if doubtful and not is_clear:
        raise RejectedError(
            3,
            f"one run is one step, so nothing proves whether {', '.join(doubtful)} are states: say all of them, "
            "--state INPUT:OUTPUT",
        )
