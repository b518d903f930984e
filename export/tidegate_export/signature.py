"""How a user's module is called: which arguments are fed, which are states, and examples of all of them."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from tidegate.bundle import BATCH, TIME, Axis, DType
from tidegate.errors import known_names
from tidegate_export.errors import ExportError
from tidegate_export.structure import flatten, refill

_DTYPES = frozenset(get_args(DType))


@dataclass(frozen=True, slots=True)
class InputShape:
    """What a module is fed: axes with `batch` among them, and `time` unless it is a setting; and a dtype."""

    axes: tuple[Axis, ...]
    dtype: str

    @classmethod
    def parse(cls, text: str, *, may_be_setting: bool = False) -> InputShape:
        """Parse `1,8,16` (batch, time, 16 features) or `time,batch,16`, with a dtype behind it if it is not float32;
        or `tokens` (int64 ids, batch and time), or `tokens,time-first`; for a setting also `batch,16`.

        Raises:
            ExportError: It is none of these.
        """
        parts = [part.strip() for part in text.split(",")]
        if parts[0] == "tokens":
            parts = {("tokens",): [BATCH, TIME, "int64"], ("tokens", "time-first"): [TIME, BATCH, "int64"]}.get(
                tuple(parts), parts
            )
        dtype = parts.pop() if len(parts) > 1 and parts[-1] in _DTYPES else "float32"
        if len(parts) > 1 and all(_is_axis(part) for part in parts) and not {BATCH, TIME} & set(parts):
            parts[:2] = [BATCH, TIME]  # the two numbers only show the order
        times = {1} if not may_be_setting or len(parts) < 2 else {0, 1}
        if parts.count(BATCH) != 1 or parts.count(TIME) not in times or not all(_is_axis(part) for part in parts):
            raise ExportError(
                f"{text!r} is no shape: write 1,8,16 (batch, time, features), time,batch,16, tokens or "
                "tokens,time-first"
            )
        return cls(tuple(int(part) if part.isdecimal() else part for part in parts), dtype)

    @property
    def is_setting(self) -> bool:
        """Whether it is no sequence: it is the same for all steps, and a caller may set it."""
        return TIME not in self.axes

    def example(self, rows: int, steps: int, seed: int = 0, scale: float = 1.0) -> Tensor:
        """Return random values of this shape, or ids 0 and 1."""
        sizes = {BATCH: rows, TIME: steps}
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in self.axes]
        generator = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            return (scale * torch.randn(shape, generator=generator)).to(dtype)
        return torch.randint(0, 2, shape, generator=generator).to(dtype)


InitialStates = Callable[[int], Sequence[Any]]
"""From a batch size to the state arguments of forward."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a module's forward."""

    inputs: Mapping[str, InputShape]
    """What is fed, by name; the first is passed by its place, the others by name."""
    states: tuple[str, ...]
    """The state arguments that forward takes itself."""
    initial: InitialStates

    def examples(self, rows: int, steps: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
        """Return random inputs."""
        return [
            shape.example(rows, steps, seed + 100 * index, scale) for index, shape in enumerate(self.inputs.values())
        ]

    def own_states(self, rows: int, seed: int = 0) -> dict[str, Any]:
        """Return forward's own states as they begin; with a seed, moved at random where they are no counters."""
        values = dict(zip(self.states, self.initial(rows), strict=True))
        if not seed:
            return values
        generator = torch.Generator().manual_seed(seed)
        leaves = [
            leaf + 0.5 * torch.randn(leaf.shape, generator=generator).to(leaf.dtype)
            if leaf.is_floating_point()
            else leaf
            for leaf in flatten(list(values.values()))
        ]
        return {name: refill(value, leaves) for name, value in values.items()}

    def call(self, module: nn.Module, inputs: Sequence[Tensor], own: Mapping[str, Any]) -> Any:
        """Run the user's module.

        Raises:
            ExportError: Whatever the module raises.
        """
        first, *rest = inputs
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return module(first, **dict(zip(list(self.inputs)[1:], rest, strict=True)), **own)
        except ExportError:
            raise
        except Exception as error:  # whatever a user's code raises is an error of the input
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            text = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ExportError(f"the module fails on an input of shape {shapes}: {text}{_hint(text)}") from error


def signature_of(module: nn.Module, described: InputShape | Mapping[str, InputShape]) -> Signature:
    """Return how `module` is called with inputs as `described`: one, or several by name.

    Raises:
        ExportError: Its forward takes other arguments, or does not say how its state begins.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    if not parameters:
        raise ExportError("forward takes no input")
    names = [item.name for item in parameters]
    inputs = {names[0]: described} if isinstance(described, InputShape) else dict(described)
    for name in inputs:
        if name not in names:
            raise ExportError(f"forward has no argument {name!r}{known_names(name, names, 'it has')}")
    if names[0] not in inputs:
        raise ExportError(f"--example-shape: say the shape of {names[0]} too, forward's first argument")
    if inputs[names[0]].is_setting:
        raise ExportError(f"--example-shape {names[0]}: forward's first argument must have a time axis")
    # A manifest lists settings after sequences.
    inputs = {name: inputs[name] for name in sorted(inputs, key=lambda it: (inputs[it].is_setting, names.index(it)))}
    rest = [item for item in parameters if item.name not in inputs]
    required = [item.name for item in rest if item.default is item.empty and item.kind in _NAMED]
    method = getattr(module, "initial_state", None)
    if not required:
        return Signature(inputs, (), lambda _: ())
    if method is None:
        raise ExportError(_undescribed(required))
    return Signature(inputs, tuple(required), _initial_states(method, required))


def _initial_states(method: Callable[[int], Any], names: Sequence[str]) -> InitialStates:
    def initial(rows: int) -> Sequence[Any]:
        try:
            with torch.no_grad():
                value = method(rows)
        except Exception as error:  # whatever a user's code raises is an error of the input
            raise ExportError(f"initial_state({rows}) fails: {type(error).__name__}: {error}") from error
        return (value,) if len(names) == 1 else tuple(value)

    if len(initial(1)) != len(names):
        raise ExportError(f"initial_state gives {len(initial(1))} states, forward requires {', '.join(names)}")
    return initial


_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


def _undescribed(names: Sequence[str]) -> str:
    """Say what to do about arguments of which nothing is known."""
    lengths = [name for name in names if re.search(r"len|mask|pad", name, re.IGNORECASE)]
    if lengths:
        return (
            f"forward requires {', '.join(lengths)}: the server never pads a sequence; give it the default None, and "
            "use no lengths or mask then"
        )
    shapes = " ".join(f"--example-shape {name}=1,8,16" for name in names)
    return (
        f"forward requires {', '.join(names)}: add initial_state(batch_size) to the module if they are states; say "
        f"their shapes, {shapes} (without time: batch,16), if they are inputs beside the first; or default them to None"
    )


def _hint(text: str) -> str:
    """Say what to do about an error that a module raises, where it is a common one."""
    for pattern, hint in _HINTS:
        if re.search(pattern, text):
            return f"; {hint}"
    return ""


_HINTS = (
    (r"CUDA|cuda", "forward puts a tensor on a CUDA device: make it on the device of the input (x.device)"),
    (
        r"[Ee]xpected hidden(\[\d\])? size|Expected hidden size",
        "its first state is made for another number of rows: make it for x.size(0) rows (x.size(1), time first)",
    ),
    (r"argument #1 'indices'|tensors used as indices", "it takes ids: say --input tokens"),
    (
        r"must be Tensor, not tuple",
        "a recurrent layer returns (outputs, state), which nn.Sequential hands on whole: take the first in a forward",
    ),
    (r"numpy\(\) on tensor that requires grad", "use .detach()"),
)


def _is_axis(part: str) -> bool:
    return part in {BATCH, TIME} or (part.isdecimal() and int(part) > 0)
