"""Finds the layer that keeps a module from streaming, by running the module in PyTorch and comparing what its layers
take and return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tidegate.bundle import TIME, Axis, TensorSpec
from tidegate.errors import BundleError
from tidegate.replay import not_streamable
from tidegate_export.errors import ExportError
from tidegate_export.signature import Signature
from tidegate_export.stateful import Exposed, RecurrentShim, StatefulModule, unchanged
from tidegate_export.structure import flatten

_STEPS, _CUT = 307, 149
"""A sequence and a place in it. Both are prime: no other axis of a module is likely to have such a size."""

_SCALES = (3.0, 30.0)
"""Of the values behind the cut: what a module does with large ones only shows too."""

_WHOLE = (RecurrentShim, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules whose parts are not looked at one by one."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer: the tensors that it took and returned."""

    path: str
    kind: str
    taken: list[Tensor]
    returned: list[Tensor]

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})" if self.path else self.kind


def check_streams(
    module: StatefulModule, signature: Signature, outputs: Sequence[TensorSpec], *, is_half: bool
) -> None:
    """Compare a sequence cut in two with the whole, in PyTorch. The proof in onnxruntime is finer and comes later; this
    one says what is to blame.

    Raises:
        BundleError: With the layer and how far it reaches; reason NOT_STREAMABLE.
        ExportError: The module fails on a long sequence.
    """
    for scale in _SCALES:
        _check_cut(module, signature, outputs, scale, 0.05 if is_half else 1e-3)


def _check_cut(
    module: StatefulModule, signature: Signature, outputs: Sequence[TensorSpec], scale: float, slack: float
) -> None:
    """Compare a sequence with its two parts, its values of some scale from the cut on."""
    inputs, axes = _growing(signature, scale), [shape.axes for shape in signature.inputs.values()]
    begin = module.first_states(1)
    whole, of_whole = _run(module, [*inputs, *begin])
    fed_first = [*_parts(inputs, axes, 0, _CUT), *begin]
    first, of_first = _run(module, fed_first)
    fed_rest = [*_parts(inputs, axes, _CUT, _STEPS), *first[len(outputs) :]]
    rest, of_rest = _run(module, fed_rest)
    for index, spec in enumerate(outputs):
        if spec.time_axis is not None and not _agree([whole[index]], [first[index]], _prefix, slack):
            if _is_rounding(module, fed_first, index, _aligned(whole[index], first[index], _prefix)):
                continue
            raise _looks_ahead(spec.name, _culprit(of_whole, of_first, _prefix, (whole[index], first[index])))
    for index, spec in enumerate(outputs):
        if not _agree([whole[index]], [rest[index]], _suffix, slack):
            if _is_rounding(module, fed_rest, index, _aligned(whole[index], rest[index], _suffix)):
                continue
            raise _remembers(spec.name, _culprit(of_whole, of_rest, _suffix, (whole[index], rest[index])))


def _run(module: StatefulModule, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Call]]:
    """Return what the module gives, and the calls of its layers."""
    try:
        with torch.no_grad(), recorded(module.module) as calls:
            return module(*tensors), calls
    except (ExportError, BundleError):
        raise
    except Exception as error:  # whatever a user's code raises is an error of the input
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(
            f"the module fails on a sequence of {_STEPS} steps, and not on one of 7: {text}; a stream has no end, so "
            "no step may depend on how many came before, but through a state"
        ) from error


def _is_rounding(
    module: StatefulModule, tensors: Sequence[Tensor], index: int, pair: tuple[Tensor, Tensor] | None
) -> bool:
    """Whether a difference is what a network near chaos makes of the last bits, as the proof allows it."""
    if pair is None:
        return False
    generator = torch.Generator().manual_seed(0)
    noisy = [
        x * (1 + 1e-7 * torch.randn(x.shape, generator=generator).to(x.dtype)) if x.is_floating_point() else x
        for x in tensors
    ]
    with torch.no_grad():
        other = module(*noisy)[index]
    return float(_difference(other, pair[1]).amax()) * 30 >= float(_difference(*pair).amax())


def changes_steps(exposed: Exposed, signature: Signature, sizes: Sequence[tuple[int, int]]) -> str:
    """Return the layer that gives another number of steps than it takes, `forward` where none of them does."""
    logs = []
    for rows, steps in sizes:
        exposed.ledger.begin({})
        with unchanged(exposed.module), recorded(exposed.module) as calls:
            signature.call(exposed.module, signature.examples(rows, steps), signature.own_states(rows))
        logs.append(calls)
    numbers = tuple(steps for _, steps in sizes)
    for same in zip(*logs, strict=False):
        if _have_steps([call.taken for call in same], numbers) and not _have_steps(
            [call.returned for call in same], numbers
        ):
            return str(same[0])
    return "forward"


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Call]]:
    """Record the calls of the layers of `module`, in order."""
    calls: list[Call] = []
    handles = []
    inside: list[str] = []
    for path, part in module.named_modules():
        if any(path.startswith(f"{outer}.") or not outer for outer in inside):
            continue
        is_whole = isinstance(part, _WHOLE)
        if is_whole:
            inside.append(path)
        if is_whole or not any(True for _ in part.children()):
            handles.append(part.register_forward_hook(_recorder(calls, path, part), with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _recorder(calls: list[Call], path: str, part: nn.Module) -> Callable[..., None]:
    kind = type(part.inner if isinstance(part, RecurrentShim) else part).__name__

    def note(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        calls.append(Call(path, kind, _tensors([args, list(kwargs.values())])[:1], _tensors(result)[:1]))

    return note


def _tensors(value: Any) -> list[Tensor]:
    try:
        return [tensor.detach().clone() for tensor in flatten(value)]
    except ExportError:  # a layer of the user's that takes more than tensors
        return []


def _parts(inputs: Sequence[Tensor], axes: Sequence[tuple[Axis, ...]], start: int, stop: int) -> list[Tensor]:
    return [
        x.narrow(at.index(TIME), start, stop - start) if TIME in at else x for x, at in zip(inputs, axes, strict=True)
    ]


Cut = Callable[[Tensor, Tensor, int], Tensor]
"""From a longer and a shorter tensor and the axis in which they differ to the part that both have."""


def _prefix(long: Tensor, short: Tensor, axis: int) -> Tensor:
    return long.narrow(axis, 0, short.shape[axis])


def _suffix(long: Tensor, short: Tensor, axis: int) -> Tensor:
    return long.narrow(axis, long.shape[axis] - short.shape[axis], short.shape[axis])


class _Culprit(NamedTuple):
    """Where a difference comes from, and how many steps it reaches beyond the cut; None where that has no end."""

    place: str
    reach: int | None


def _culprit(whole: Sequence[Call], piece: Sequence[Call], cut: Cut, last: tuple[Tensor, Tensor]) -> _Culprit:
    """Return the first layer that takes the same and returns something else; or that forward gives something else."""
    for long, short in zip(whole, piece, strict=False):
        if long.path != short.path:
            break
        if not _agree(long.returned, short.returned, cut):
            if _agree(long.taken, short.taken, cut):
                return _Culprit(f"from {long} on", _reach(long.returned[0], short.returned[0], cut))
            place = f"from what forward does before {long} on"
            return _Culprit(place, _reach(long.taken[0], short.taken[0], cut) if long.taken and short.taken else None)
    return _Culprit("in what forward does after its last layer", _reach(*last, cut))


def _agree(long: Sequence[Tensor], short: Sequence[Tensor], cut: Cut, slack: float = 1e-3) -> bool:
    for a, b in zip(long, short, strict=False):
        pair = _aligned(a, b, cut)
        if pair is None or bool((_difference(*pair) > slack).any()):
            return False
    return True


def _aligned(long: Tensor, short: Tensor, cut: Cut) -> tuple[Tensor, Tensor] | None:
    """Return the part that two tensors share along the axis in which they differ, None where they differ in several."""
    axis = _axis(long, short)
    if long.dim() != short.dim() or axis == _SEVERAL:
        return None
    if axis is None:
        return long, short
    return (cut(long, short, axis), short) if long.shape[axis] > short.shape[axis] else None


_SEVERAL = -1


def _axis(long: Tensor, short: Tensor) -> int | None:
    axes = [axis for axis, sizes in enumerate(zip(long.shape, short.shape, strict=False)) if sizes[0] != sizes[1]]
    return _SEVERAL if len(axes) > 1 else axes[0] if axes else None


def _difference(expected: Tensor, found: Tensor) -> Tensor:
    """Return how far two tensors are apart, as a share of their values."""
    a, b = expected.double(), found.double()
    return torch.where(a.isnan() & b.isnan(), 0.0, (a - b).abs() / (0.1 + a.abs()))


def _reach(long: Tensor, short: Tensor, cut: Cut) -> int | None:
    """Return how many steps beyond the cut differ; None where the difference fades slowly or not at all."""
    axis, pair = _axis(long, short), _aligned(long, short, cut)
    if pair is None or axis is None:
        return None
    by_step = _difference(*pair).movedim(axis, 0).flatten(1).amax(1)
    if cut is _prefix:
        by_step = by_step.flip(0)  # it is counted from the cut
    far = (by_step > 1e-3).nonzero().flatten().tolist()
    reach = int(far[-1]) + 1 if far else 0
    if not reach or reach >= len(by_step) - 1:
        return None
    # What a window reaches ends at once; what a recurrence remembers fades.
    is_fading = by_step[3 * reach // 4 : reach].mean() < 0.1 * by_step[:reach].mean()
    return None if is_fading else reach


def _have_steps(runs: Sequence[Sequence[Tensor]], steps: tuple[int, ...]) -> bool:
    """Whether an axis of a tensor has the sizes `steps`, or the same multiple of each, in several runs."""
    return any(
        all(size % step == 0 and size // step == sizes[0] // steps[0] for size, step in zip(sizes, steps, strict=True))
        for tensors in zip(*runs, strict=False)
        for sizes in zip(*(tensor.shape for tensor in tensors), strict=False)
    )


def _looks_ahead(name: str, culprit: _Culprit) -> BundleError:
    if culprit.reach is None:
        return not_streamable(
            f"{name} looks ahead over the whole sequence, {culprit.place}: attention, a mean or a normalization "
            "over all steps, or a reversed sequence needs the end of the sequence, which a stream does not have"
        )
    steps = f"{culprit.reach} step{'s' if culprit.reach > 1 else ''}"
    return not_streamable(
        f"{name} looks ahead {steps}, {culprit.place}: pad at the beginning only (F.pad), so that it looks back, or "
        f"give each output {steps} later"
    )


def _remembers(name: str, culprit: _Culprit) -> BundleError:
    if culprit.reach is None:
        return not_streamable(
            f"{name} depends on a memory that is not among the states, of all steps before, {culprit.place}: "
            "attention, or a sum or positions counted over the whole sequence; take it as an argument of forward with "
            "initial_state(batch_size), and return it after the outputs"
        )
    return not_streamable(
        f"{name} depends on a memory that is not among the states, of {culprit.reach} "
        f"step{'s' if culprit.reach > 1 else ''} before, {culprit.place}: take these steps as an argument of "
        "forward with initial_state(batch_size), and return those of the end after the outputs"
    )


def _growing(signature: Signature, scale: float) -> list[Tensor]:
    """Return a long input whose later steps are larger, so that what looks at all of them shows."""
    inputs = signature.examples(1, _STEPS, seed=5)
    for x, shape in zip(inputs, signature.inputs.values(), strict=True):
        if x.is_floating_point() and not shape.is_setting:
            x.narrow(shape.axes.index(TIME), _CUT, _STEPS - _CUT).mul_(scale)
    return inputs
