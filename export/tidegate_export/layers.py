"""Finds out what a module's recurrent layers run over, and from which state they begin, by running the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tidegate_export.blame import changes_steps
from tidegate_export.errors import ExportError
from tidegate_export.signature import Signature
from tidegate_export.stateful import Exposed, LayerCall, Ledger, States, unchanged


class Probe(NamedTuple):
    """One run of a module on random input."""

    rows: int
    steps: int
    seed: int
    scale: float


SIZES = ((2, 5), (3, 5), (2, 7))
"""Rows and steps of the probes: between the first and the second only the batch differs, to the third only the time."""

_PROBES = (*(Probe(rows, steps, index, 1.0) for index, (rows, steps) in enumerate(SIZES)), Probe(2, 5, 3, 8.0))


def find_layers(exposed: Exposed, signature: Signature) -> None:
    """Note in the ledger which layers begin anew in every call and from which state, and which run within a step.

    Raises:
        ExportError: A layer does not run over the sequence, or from its beginning.
    """
    ledger = exposed.ledger
    runs = []
    for probe in _PROBES:
        ledger.begin({})
        with unchanged(exposed.module):
            inputs = signature.examples(probe.rows, probe.steps, probe.seed, probe.scale)
            signature.call(exposed.module, inputs, signature.own_states(probe.rows, probe.seed))
        runs.append(dict(ledger.calls))
    for path, shim in exposed.shims.items():
        calls = [run.get(path, []) for run in runs]
        where = path or "the layer"
        if len({len(each) for each in calls}) > 1:
            raise ExportError(
                f"{where} is called for every step or part of the sequence, in a loop in Python, which has a fixed "
                "length once exported: call it once over the whole sequence"
            )
        if _run_within_steps(calls):
            ledger.within.add(path)
        elif shim.inner.bidirectional and calls[0]:
            raise ExportError(
                f"{where} is bidirectional: its backward half begins at the end of the sequence, so it cannot stream"
            )
        else:
            _note_beginning(exposed, signature, path, calls)
    _run_again(exposed, signature)


def _run_again(exposed: Exposed, signature: Signature) -> None:
    """Run once more with what is known now, so that the ledger holds the layers that begin anew."""
    exposed.ledger.begin({})
    with unchanged(exposed.module):
        signature.call(exposed.module, signature.examples(1, SIZES[0][1]), signature.own_states(1))


def _run_within_steps(calls: Sequence[Sequence[LayerCall]]) -> bool:
    """Whether a layer runs across each single step: its rows are those of all steps, its own steps always as many."""
    number = len(calls[0])
    return number > 0 and all(
        len({each[index].steps for each in calls}) == 1
        and len({each[index].rows / (probe.rows * probe.steps) for each, probe in zip(calls, _PROBES, strict=True)})
        == 1
        and calls[0][index].rows % (_PROBES[0].rows * _PROBES[0].steps) == 0
        for index in range(number)
    )


def _note_beginning(exposed: Exposed, signature: Signature, path: str, calls: Sequence[Sequence[LayerCall]]) -> None:
    ledger: Ledger = exposed.ledger
    begins = [each[0] for each in calls if each]
    if not begins:
        return
    given = [call.given for call in begins]
    if any(states is not None for states in given):
        first = _constant([states for states in given if states is not None])
        if first is None or any(states is None for states in given):
            if not signature.states:
                raise ExportError(
                    f"{path or 'the layer'} begins every call with a state that forward computes from the input: in a "
                    "stream, each piece would begin anew; pass the state in by an argument of forward, with "
                    "initial_state(batch_size)"
                )
            return
        ledger.firsts[path] = first
    lanes = {call.rows / probe.rows for call, probe in zip(begins, _PROBES, strict=True)}
    steps = [call.steps for call in begins]
    has_all_steps = steps == [probe.steps for probe in _PROBES]
    if has_all_steps and len(lanes) == 1 and (number := lanes.pop()) >= 1 and number.is_integer():
        if number > 1:
            ledger.lanes[path] = int(number)
        return
    raise ExportError(_why_other_sizes(exposed, signature, path, begins))


def _constant(given: Sequence[States]) -> States | None:
    """Return the state of one row, if it is the same for every row of every run."""
    firsts: list[Tensor] = []
    for parts in zip(*given, strict=True):
        if any(part.dim() != 3 or not part.shape[1] for part in parts):
            return None
        first = parts[0][:, :1]
        if not all(torch.equal(part, first.expand_as(part)) for part in parts):
            return None
        firsts.append(first.clone())
    return tuple(firsts)


def _why_other_sizes(exposed: Exposed, signature: Signature, path: str, begins: Sequence[LayerCall]) -> str:
    where, (rows, steps), seen = path or "the layer", SIZES[0], begins[0]
    if (seen.rows, seen.steps) == (steps, rows):
        sees = f"{where} sees {seen.rows} rows of {seen.steps} steps"
        return f"{sees}, the input has {rows} of {steps}: is batch_first right?"
    if all(call.rows == probe.rows for call, probe in zip(begins, _PROBES, strict=True)):
        fewer = [probe.steps - call.steps for call, probe in zip(begins, _PROBES, strict=True)]
        culprit = changes_steps(exposed, signature, SIZES)
        sees = f"{where} sees {begins[0].steps} steps of {SIZES[0][1]} and {begins[2].steps} of {SIZES[2][1]}"
        if len(set(fewer)) == 1:
            way = "takes away" if fewer[0] > 0 else "adds"
            return (
                f"{culprit} {way} {abs(fewer[0])} step{'s' if abs(fewer[0]) > 1 else ''}, so {sees}: every step needs "
                "its own output at once; pad at the beginning (F.pad), and take the steps before as a state"
            )
        long = 10 * SIZES[0][1]
        ratio = _steps_seen(exposed, signature, path, long)
        rate = f" (about one for every {long / ratio:.3g} of the input)" if 0 < ratio < long else ""
        return (
            f"{culprit} changes the number of steps, {sees}{rate}: a stream gives one output a step; let one step of "
            "the input hold all that one step of the layer needs, and stack it outside of the module"
        )
    return (
        f"{where} sees {seen.rows} rows of {seen.steps} steps, the input has {rows} of {steps}: its state is not "
        "that of the sequence; is batch_first right?"
    )


def _steps_seen(exposed: Exposed, signature: Signature, path: str, steps: int) -> int:
    exposed.ledger.begin({})
    with unchanged(exposed.module):
        signature.call(exposed.module, signature.examples(1, steps), signature.own_states(1))
    calls = exposed.ledger.calls.get(path, [])
    return calls[0].steps if calls else 0
