"""Which inputs are states and which are data where one run is one step, by what the graph does with them.

Such a run cannot be cut, so nothing proves a pair. What the graph does counts most: a recurrent layer that begins with
the input and ends with the output, a cache that is moved on, a value that the other outputs are made of. Names only add
to that. Where an enhanced frame looks like the next state of the frame that went in, the frame is data if nothing could
ever get into such a state, or if the graph makes nothing of it; where neither is clear, the caller is asked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import onnx_ir as ir

from tidegate_export.importing.evidence import Evidence, agreement, is_made_up, similarity
from tidegate_export.importing.flow import Flow, Link
from tidegate_export.importing.refusals import RejectedError
from tidegate_export.importing.request import SaidRoles

Pair = tuple[str, str]
Candidates = Mapping[str, Sequence[str]]
"""By input: the outputs of its shape and dtype."""

_SURE = 4.0
"""From here on a pair is a state, if nothing else has an equal claim to one of its ends."""
_DOUBTFUL = 1.0
"""From here on a pair may be a state."""

_CARRIED, _SHIFTED, _COUNTED, _GATED = 6.0, 5.0, 5.0, 4.5
_INNER, _DELAYED, _ELEMENTWISE, _MIXED, _APART = 3.0, 1.25, 1.0, 0.0, -3.0
_MOST_AT_END = 3.5
"""Of what nothing else is made of: it may be what a caller wants to hear, so it is never sure."""
_AGREE, _NUMBERED, _CALLED_STATE, _CALLED_DATA = 2.0, 0.5, 1.5, -2.5
_UNLIKE_OTHERS = -1.0
"""Its names do not agree, those of a sure pair do."""
_NOTHING_GETS_IN = -2.0
_NEVER = -100.0
_MOST_TOLD = 8
"""Pairs in a question."""

_BY_LINK = {
    Link.MOVED: (_ELEMENTWISE, _SHIFTED, "the graph keeps parts of it"),
    Link.ELEMENTWISE: (_ELEMENTWISE, _GATED, "the graph scales and adds to it"),
    Link.MIXED: (_MIXED, _INNER, "the graph mixes it with others"),
    Link.NONE: (_APART, _DELAYED, "the next run gets what this one made"),
}
"""What a pair counts if nothing else is made of its output, what if another output is, and that in words."""

_STATE_WORDS = """
    state states hidden h c hx cx hn cn cell cache caches ctx context buf buffer mem memory hist history prev previous
    past carry ring ola overlap tail stats running count counter position offset seen ssm wkv kv lstm gru rnn
"""
_STATES = frozenset(_STATE_WORDS.split())
_DATA_WORDS = """
    x audio wav wave waveform frame frames mic ref reference far near farend nearend speech signal sig sample samples
    pcm noisy clean mix mixture spec spectrum spectrogram stft mag magnitude phase real imag mel fbank feat feats
    feature features mfcc image img obs observation token tokens ids text action actions data
"""
_DATA = frozenset(_DATA_WORDS.split())
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")


class Trial(Protocol):
    """Runs of the graph, one step of one row each, on random numbers."""

    def stays_zero(self, names: Collection[str]) -> Collection[str]:
        """Return the outputs that are zero everywhere, whatever else goes in, if these inputs are."""

    def is_shifted(self, name: str, output: str) -> bool:
        """Whether an element of the input comes out at another place."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A pair with what speaks for it."""

    pair: Pair
    score: float
    because: str
    is_inner: bool = False
    """Another output is made of this one, or of a part of it."""
    tie: float = 0.0
    """Decides between pairs of one score: how alike the names are, and whether one output is made of the other."""

    @property
    def rank(self) -> tuple[float, float]:
        return self.score, self.tie

    @property
    def is_never(self) -> bool:
        """Whether it is certain that this is no state: it would be zero for ever."""
        return self.score == _NEVER


@dataclass(frozen=True, slots=True)
class Decided:
    """States by input, and why each input is what it is."""

    pairs: Mapping[str, str]
    reasons: Mapping[str, str]


@dataclass(slots=True)
class Judge:
    """Decides over one graph.

    Args:
        candidates: By input, the outputs of its kind.
        roles: What the caller said, and other states that are certain.
        begun: Inputs of which the caller gave the first value: it need not be zero.
        evidence: What hangs on what.
        flow: The graph.
        trial: Runs it.
    """

    candidates: Candidates
    roles: SaidRoles
    begun: Collection[str]
    evidence: Evidence
    flow: Flow
    trial: Trial
    outputs: dict[str, ir.Value] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = {value.name or "": value for value in self.flow.graph.outputs}

    def decide(self) -> Decided:
        """Return the roles.

        Raises:
            RejectedError: The caller must say more; the message says what.
        """
        pairs = dict(self.roles.states)
        reasons = dict.fromkeys(pairs, "as you said")
        if self.roles.is_complete:
            return Decided(pairs, reasons | dict.fromkeys(self._rest(pairs), "no --state names it"))
        weighed = self.weighed()
        for item in weighed:
            if item.score >= _SURE and self._is_open(item.pair, pairs) and not self._would_be_last(pairs):
                _refuse_tie(item, [other for other in weighed if self._is_open(other.pair, pairs)])
                pairs[item.pair[0]] = item.pair[1]
                reasons[item.pair[0]] = item.because
        has_convention = any(agreement(name, output) == 1 for name, output in pairs.items())
        doubtful = [
            item
            for item in weighed
            if self._is_open(item.pair, pairs) and self._is_doubtful(item, has_convention=has_convention)
        ]
        if not pairs and not doubtful:
            doubtful = [item for item in weighed if item.score > _APART]
        if doubtful and len(self._rest(pairs)) > 1:
            if pairs:
                raise RejectedError(3, _ask(doubtful))
            for item in self._only(doubtful, weighed):
                pairs[item.pair[0]] = item.pair[1]
                reasons[item.pair[0]] = f"{item.because}; no other input could be one"
        self._refuse_unsure(pairs, weighed)
        self._refuse_autonomous(pairs)
        return Decided(pairs, reasons | {name: self._why_data(name, pairs, weighed) for name in self._rest(pairs)})

    # ---- what speaks for a pair

    def weighed(self) -> list[Weighed]:
        """Return all pairs that the caller left open, the likeliest first."""
        pairs = [
            (name, output)
            for name, outputs in self.candidates.items()
            for output in outputs
            if name not in self.roles.data and self._is_open((name, output), self.roles.states)
        ]
        zeros = {name: self.trial.stays_zero([name]) for name in {name for name, _ in pairs} - {*self.begun}}
        structures = {pair: self._structure(pair) for pair in pairs}
        ends = [pair for pair in pairs if structures[pair][0] == _ELEMENTWISE and pair[0] not in self.begun]
        together = self.trial.stays_zero([name for name, _ in ends]) if len(ends) > 1 else ()
        nearer = self._nearer(pairs)
        weighed = [
            replace(
                self._weigh(pair, *structures[pair], zeros.get(pair[0], ()), together if pair in ends else ()),
                is_inner=self._is_inner(pair[1]),
                tie=similarity(*pair) + (pair in nearer),
            )
            for pair in pairs
        ]
        return sorted(weighed, key=lambda item: item.rank, reverse=True)

    def _nearer(self, pairs: Sequence[Pair]) -> set[Pair]:
        """Return the pairs by way of whose output the input reaches another: a cell, before its output gate."""
        made = {
            output: {other for other in self.outputs if self.outputs[other] in self._made_of(output)}
            for output in {output for _, output in pairs}
        }
        return {
            (name, output)
            for name, output in pairs
            for other in self.candidates[name]
            if other != output and other in made[output] and output not in made.get(other, ())
        }

    def _made_of(self, output: str) -> set[ir.Value]:
        """Return the values that are made of an output, or of a part of it."""
        return {value for part in self.flow.parts(self.outputs[output]) for value in self.flow.links(part)}

    def _weigh(
        self, pair: Pair, score: float, because: str, zeros: Collection[str], together: Collection[str]
    ) -> Weighed:
        if pair[1] in zeros and not self._is_handed_on(pair):
            return Weighed(pair, _NEVER, "")
        agree = agreement(*pair)
        total = score + _named(pair, agree)
        if score in {_ELEMENTWISE, _MIXED}:
            total = min(total, _MOST_AT_END)
        if pair[1] in together:
            total += _NOTHING_GETS_IN
        told = ", ".join(filter(None, (because, "their names agree" if agree == 1 else "")))
        return Weighed(pair, total, told or "nothing but shape and dtype speaks for it")

    def _structure(self, pair: Pair) -> tuple[float, str]:
        """Return how much what the graph does with a pair speaks for a state, and that in words."""
        link = self.evidence.links[pair]
        if pair in self.evidence.carried:
            return _CARRIED, "a recurrent layer begins with it and ends with the other"
        if self._is_handed_on(pair):
            return _MIXED, "handed on as it came"
        is_inner = self._is_inner(pair[1])
        if link is Link.MOVED and (is_inner or self.trial.is_shifted(*pair)):
            return _SHIFTED, "the graph moves it on"
        if link is Link.ELEMENTWISE and self.evidence.depends[pair[1]] == {pair[0]}:
            return _COUNTED, "the graph counts it on"
        at_end, inner, told = _BY_LINK[link]
        if is_inner:
            return inner, ", and ".join(filter(None, (told, "makes other outputs of it")))
        return at_end, told

    def _is_handed_on(self, pair: Pair) -> bool:
        source = self.flow.handed_on_from(self.outputs[pair[1]])
        return source is not None and source.name == pair[0]

    def _is_inner(self, output: str) -> bool:
        """Whether another output is made of what comes out here, or of a part of it."""
        others = {value for name, value in self.outputs.items() if name != output}
        source = self.flow.handed_on_from(self.outputs[output])
        made = self._made_of(output) if source is None else self.flow.links(source).keys()
        return bool(others & made)

    def _is_doubtful(self, item: Weighed, *, has_convention: bool) -> bool:
        if self._is_handed_on(item.pair):
            # What is handed on can be sent with every step: that is never wrong.
            return item.score >= _MOST_AT_END
        is_recurrence = item.score >= _MIXED and self.evidence.links[item.pair] is not Link.NONE
        # What a run leaves for the next one, the graph itself may make nothing of: then names that agree are a hint.
        could_be = is_recurrence or (item.score > _NEVER and agreement(*item.pair) == 1)
        if could_be and _named(item.pair, 0.0) >= 0:
            return True  # and no name says that it is data
        is_unlike = has_convention and agreement(*item.pair) < 1
        return item.score + (_UNLIKE_OTHERS if is_unlike else 0.0) >= _DOUBTFUL

    # ---- who is left

    def _is_open(self, pair: Pair, pairs: Mapping[str, str]) -> bool:
        return pair[0] not in pairs and pair[1] not in pairs.values()

    def _rest(self, pairs: Mapping[str, str]) -> list[str]:
        return [name for name in self.candidates if name not in pairs]

    def _would_be_last(self, pairs: Mapping[str, str]) -> bool:
        """Whether nothing would be left to send, or nothing to tell, with one more state."""
        return len(self._rest(pairs)) == 1 or len(self.outputs) - len(pairs) == 1

    def _only(self, doubtful: Sequence[Weighed], weighed: Sequence[Weighed]) -> Sequence[Weighed]:
        """Return the states where none is sure, if there is one way to choose them and no other input can be one.

        Raises:
            RejectedError: There is not.
        """
        chosen: dict[str, Weighed] = {}
        for item in doubtful:
            is_taken = item.pair[0] in chosen or item.pair[1] in {other.pair[1] for other in chosen.values()}
            if not is_taken:
                _refuse_tie(item, [other for other in doubtful if other.pair[0] not in chosen])
                chosen[item.pair[0]] = item
        outputs = {item.pair[1] for item in chosen.values()}
        is_inner = all(item.is_inner and item.score >= _INNER for item in chosen.values())
        is_called_so = len(chosen) == 1 and doubtful[0].score >= _MOST_AT_END
        is_named = len(chosen) == 1 and agreement(*doubtful[0].pair) == 1
        rivals = [
            item
            for item in weighed
            if item.pair[0] not in chosen
            and item.score > (_APART if not (is_inner or is_called_so) or item.pair[1] in outputs else _DOUBTFUL)
        ]
        if rivals or not (is_inner or is_named) or len(chosen) == len(self.candidates):
            raise RejectedError(3, _ask(doubtful))
        return list(chosen.values())

    def _refuse_unsure(self, pairs: Mapping[str, str], weighed: Sequence[Weighed]) -> None:
        """Ask about inputs that would be data though they could be states, for all that is certain."""
        believes_names = self._names_tell_states(pairs)
        left = [
            item
            for item in weighed
            if self._is_open(item.pair, pairs)
            and not item.is_never
            and not self._is_handed_on(item.pair)
            and not (believes_names and _named(item.pair, 0.0) < 0 and not self._is_delay(item.pair))
        ]
        if len(self._rest(pairs)) == 1:  # somebody must send something: as sure a state was no surer than this one
            left = [item for item in left if item.score >= _SURE]
        if left:
            raise RejectedError(3, _ask(left))

    def _is_delay(self, pair: Pair) -> bool:
        """Whether the output is what another input was, as in a line of delays: whatever the names say."""
        name, output = pair
        (other, *more) = self.evidence.depends[output] or {name}
        return not more and other != name and self.evidence.links[other, output] is Link.MOVED

    def _names_tell_states(self, pairs: Mapping[str, str]) -> bool:
        """Whether no name of what was found to be a state says otherwise: then names say what is data, too."""
        found = [pair for pair in pairs.items() if pair[0] not in self.roles.states]
        return all(_named(pair, agreement(*pair)) > 0 or is_made_up(pair[0]) for pair in found)

    def _refuse_autonomous(self, pairs: Mapping[str, str]) -> None:
        """Refuse states that no data ever reaches, unless they count or stay as they are."""
        reached = set(self._rest(pairs))
        todo = dict(pairs)
        while changed := [name for name, output in todo.items() if self.evidence.depends[output] & reached]:
            reached |= set(changed)
            for name in changed:
                del todo[name]
        alone = [
            (name, output)
            for name, output in todo.items()
            if name not in self.roles.states
            and self._structure((name, output))[0] != _COUNTED
            and not self._is_handed_on((name, output))
        ]
        if alone:
            told = ", ".join(f"{name} → {output}" for name, output in alone)
            raise RejectedError(
                3, f"nothing that a caller sends would reach {told}: say which inputs are states, --state INPUT:OUTPUT"
            )

    def _why_data(self, name: str, pairs: Mapping[str, str], weighed: Sequence[Weighed]) -> str:
        if name in self.roles.data:
            return "as you said"
        own = [item for item in weighed if item.pair[0] == name and item.pair[1] not in pairs.values()]
        if not own:
            return "no output is left that has its shape and dtype"
        output = own[0].pair[1]
        if own[0].is_never:
            return f"{output} is made of it by scaling: as a state it would be zero for ever"
        if self._is_handed_on(own[0].pair):
            return f"handed on to {output} as it came"
        if len(self._rest(pairs)) == 1:
            return "an input must be left to send"
        return f"nothing is made of {output}, so no run needs it again"


def _named(pair: Pair, agree: float) -> float:
    """Return what names say: whether they agree, and whether they are words for states or for data."""
    score = _AGREE if agree == 1 else _NUMBERED if agree else 0.0
    words = {word.lower() for word in _WORD.findall(pair[0])}
    if words & _STATES:
        return score + _CALLED_STATE
    words |= {word.lower() for word in _WORD.findall(pair[1])}
    return score + (_CALLED_DATA if words & _DATA or pair[0].lower() in {"input", "inputs"} else 0.0)


def _refuse_tie(item: Weighed, rest: Sequence[Weighed]) -> None:
    rivals = [
        other.pair
        for other in rest
        if other.rank == item.rank and (other.pair[0] == item.pair[0]) != (other.pair[1] == item.pair[1])
    ]
    if rivals:
        told = ", ".join(f"{name}:{output}" for name, output in (item.pair, *rivals))
        raise RejectedError(
            3,
            f"these pairs are equally likely: {told}; say all states, --state INPUT:OUTPUT, or which are data, "
            "--data NAME",
        )


def _ask(doubtful: Sequence[Weighed]) -> str:
    names = list(dict.fromkeys(item.pair[0] for item in doubtful))
    pairs = list(dict.fromkeys(item.pair for item in doubtful))
    choices = ", ".join(f"{name}:{output}" for name, output in pairs[:_MOST_TOLD]) + ", …" * (len(pairs) > _MOST_TOLD)
    kind = "is a state" if len(names) == 1 else "are states"
    return (
        f"one run is one step, so nothing proves whether {', '.join(names)} {kind} or data: say all states, --state "
        f"INPUT:OUTPUT (of these {choices} may be), or which are data, --data NAME"
    )
