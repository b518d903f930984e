"""Why a graph cannot be imported, and what its owner can do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate_export.importing.contexts import wants_again
from tidegate_export.importing.flow import Flow
from tidegate_export.importing.foreign import Declared
from tidegate_export.importing.plan import Axes
from tidegate_export.importing.request import SaidRoles


class RejectedError(Exception):
    """A guess does not hold. The further it got, the more its reason says: `depth`."""

    def __init__(self, depth: int, message: str) -> None:
        super().__init__(message)
        self.depth = depth


def unsaid_setting(name: str, dtype: str, dims: Axes) -> str:
    kind = f"{dtype} {list(dims)}"
    return (
        f"input {name!r} ({kind}) is neither a sequence nor a state: say its value, --constant {name}=VALUE, or, if "
        f"callers may change it, --setting {name}=DEFAULT"
    )


def grows(name: str, output: str) -> RejectedError:
    return RejectedError(
        6,
        f"{name} → {output} looks like a state, but comes out longer than it went in: a state keeps its size, so a "
        "cache that grows cannot be one; export the model with a cache of fixed length",
    )


def only_said(roles: SaidRoles) -> str:
    """Say which states the caller named, if that leaves out all others."""
    if not roles.is_complete:
        return ""
    if not roles.states:
        return "--state none says that no input is a state: leave it out, or name the states, --state INPUT:OUTPUT"
    names = ", ".join(roles.states)
    said = f"only {names} {'was' if len(roles.states) == 1 else 'were'}"
    return f"{said} said to be a state (--state), so the others are data: name all states, or none"


def without_state(flow: Flow, inputs: Sequence[Declared] = ()) -> RejectedError:
    """Return the refusal of a graph of which no input is a state; of its `inputs`, one may be a window."""
    if flow.layers:
        return RejectedError(
            4,
            f"the state of {listed([layer.name for layer in flow.layers])} has no tensors: every run begins anew, so a "
            "sequence in pieces gives other results than the whole; export the model with its state as inputs and "
            "outputs",
        )
    reason = "no input comes out again as an output, so there is no state to keep"
    hint = wants_again(inputs)
    return RejectedError(1, f"{reason}; {hint}" if hint else f"{reason}: nothing to stream")


def lacks_rows(output: str, lacking: int, overlaps: Mapping[str, int], inputs: Sequence[str]) -> str:
    """Say which context makes an output have one row a step, where it has so many fewer (or more) than that.

    Args:
        output: Its name.
        lacking: How many rows it has too few, next to the steps of the input; negative: too many.
        overlaps: The contexts along time that were said, by input.
        inputs: Those with a time axis.
    """
    fits = {name: overlaps.get(name, 0) + lacking for name in overlaps or inputs[:1]}
    said = " ".join(f"--context {name}={size}@time" for name, size in fits.items() if size > 0)
    wrong = f"output {output!r} has {abs(lacking)} rows {'fewer' if lacking > 0 else 'more'} than there are steps"
    if not said:
        return f"{wrong}: leave --context {', '.join(fits)} out" if overlaps else wrong
    return f"{wrong}: if each run wants the last rows again, {said}"


def why_not_streamable(flow: Flow, states: Sequence[str]) -> str:
    """Say what in the graph is likely to keep it from streaming, given that it does not."""
    backward, forgetful = flow.backward(), flow.forgetful(states)
    if not backward and flow.layers and flow.reversals:
        return (
            f"{listed(flow.reversals)} turns the sequence around, and a layer then begins at its end, which a stream "
            "does not have; use a model that only runs forward"
        )
    if backward:
        return (
            f"{listed(backward)} is bidirectional: its backward half begins at the end of the sequence, which a stream "
            "does not have; use a model that only runs forward"
        )
    if forgetful:
        return (
            f"the state of {listed(forgetful)} has no tensors: every run begins anew; export the model with it as "
            "inputs and outputs"
        )
    return (
        "a memory that is in no state, or a look at later steps (a convolution over time, attention, a mean over all "
        "steps): export the model with its caches as inputs and outputs, or say what the graph wants again (--context)"
    )


def begins_anew(layers: Sequence[str]) -> str:
    """Say what is wrong with layers without state where one run is one step."""
    return (
        f"{listed(layers)}: no state of it goes from one run to the next (or it runs backward). Along time that cannot "
        "stream: export the model with its state as inputs and outputs. If such layers run across each frame, over its "
        "frequencies say, that is right: say --within-frame"
    )


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
