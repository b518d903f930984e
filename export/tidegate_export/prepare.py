"""Makes a user's module ready to be exported: unwrapped, on the CPU, in evaluation mode, in a dtype that runs; and
refuses one whose result is not decided by its input.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tidegate_export.errors import ExportError
from tidegate_export.signature import Signature
from tidegate_export.stateful import unchanged
from tidegate_export.structure import flatten

_ROWS, _STEPS = 2, 5


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the Python module inside of DataParallel, torch.compile and the like, on the CPU and without gradients.

    Raises:
        ExportError: It is TorchScript or quantized, whose layers cannot be reached, or it has cells of single steps.
    """
    module = _inside(module)
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if _inside(child) is not child:
                setattr(part, name, _inside(child))
    for path, part in module.named_modules():
        _refuse_layer(path or "the module", part)
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise ExportError(f"{name} has no values (it is on the device 'meta'): load the weights in the factory")
    for parameter in module.parameters():
        if not torch.nn.parameter.is_lazy(parameter):
            parameter.requires_grad_(False)
    return module.cpu().eval()


def _inside(module: nn.Module) -> nn.Module:
    """Return what a module wraps that only changes how it is run."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | torch.optim.swa_utils.AveragedModel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _refuse_layer(where: str, part: nn.Module) -> None:
    if isinstance(part, torch.jit.ScriptModule):
        raise ExportError(
            f"{where} is TorchScript, whose layers cannot be reached: export the Python module that it was made of"
        )
    if isinstance(part, nn.RNNCellBase):
        kind = type(part).__name__
        raise ExportError(
            f"{where} is an {kind}: a loop in Python has a fixed length once exported; use "
            f"nn.{kind.removesuffix('Cell')}"
        )
    if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
        raise ExportError(
            f"{where} is quantized ({type(part).__name__}): export the module as it was before, then use "
            "tidegate quantize"
        )


def in_runnable_dtype(module: nn.Module, signature: Signature) -> tuple[nn.Module, tuple[str, ...]]:
    """Return `module` in float32 where its weights have another dtype than its input, and what to tell of it.

    Raises:
        ExportError: It fails on its input, or it computes in a dtype that onnxruntime has no kernels for.
    """
    dtypes = Counter(tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point())
    others = [dtype for dtype in dtypes if dtype != torch.float32]
    inputs, own = signature.examples(_ROWS, _STEPS), signature.own_states(_ROWS)
    try:
        with _restored(module):
            signature.call(module, inputs, own)
    except ExportError as error:
        if not others or any(not x.is_floating_point() for x in inputs):
            _refuse_one_row(module, signature, str(error))
            raise
        module = module.float()
        with _restored(module):
            signature.call(module, inputs, own)
        return module, tuple(f"{_name(dtype)} weights compute in float32" for dtype in others)
    layers = {tensor.dtype for part in module.modules() if isinstance(part, nn.RNNBase) for tensor in part.parameters()}
    for dtype in others:
        if dtype == torch.float16 or (dtype == torch.float64 and dtype not in layers):
            continue
        try:
            with _restored(module.float()):
                signature.call(module, inputs, own)
        except ExportError as error:
            raise ExportError(
                f"the module has weights in {_name(dtype)} and computes in it, which onnxruntime's layers do not: call "
                f".float() on it, and leave the casts to {_name(dtype)} out of forward"
            ) from error
        return module, (f"{_name(dtype)} weights compute in float32",)
    return module, ()


def _refuse_one_row(module: nn.Module, signature: Signature, message: str) -> None:
    """Say of a module that fails on two rows whether it takes one: its first state, or one that it keeps, has one."""
    try:
        with _restored(module):
            signature.call(module, signature.examples(1, _STEPS), signature.own_states(1))
    except ExportError:
        return
    refuse_unpredictable(module, signature, rows=1)
    raise ExportError(f"the module takes one row only, and must take any number: {message}")


def refuse_unpredictable(module: nn.Module, signature: Signature, rows: int = _ROWS) -> None:
    """Refuse a module of which two runs on one input differ: it draws random numbers, or keeps a state to itself.

    Raises:
        ExportError: With the place in forward, or the attribute.
    """
    inputs = signature.examples(rows, _STEPS)

    def run() -> list[Tensor]:
        return [leaf.clone() for leaf in flatten(signature.call(module, inputs, signature.own_states(rows)))]

    with _restored(module), _RandomCalls() as calls:
        first = run()
    with _restored(module):
        before = _kept_tensors(module)
        second = run()
        after = _kept_tensors(module)
        third = run()
    if not _are_equal(first, second):
        raise ExportError(
            f"the module is not deterministic, two runs on one input differ: {calls.told()}; in a stream every result "
            "must follow from the input"
        )
    if not _are_equal(first, third):
        names = [f"self.{name}" for name, values in after.items() if not _are_equal(before.get(name, []), values)]
        raise ExportError(
            f"the module keeps a state between calls ({', '.join(names[:3]) or 'in an attribute'}): take it as an "
            "argument of forward and return it after the outputs, with initial_state(batch_size) for its beginning; or "
            "begin anew in every call (self.lstm(x)), and the export finds the state itself"
        )


class _RandomCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where random numbers are drawn."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._found[f"{_friendly(func)}{_place()}"] = None
        return func(*args, **(kwargs or {}))

    def told(self) -> str:
        if not self._found:
            return "it draws random numbers outside of PyTorch, or counts its calls outside of the module"
        return ", ".join(list(self._found)[:3])


def _friendly(func: Any) -> str:
    name = func.overloadpacket.__name__.rstrip("_")
    return "dropout is active (training=True)" if name in {"bernoulli", "native_dropout"} else f"{name} draws at random"


def _place() -> str:
    """Return the line of the user's code that is running."""
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(libraries):
            return f" in {frame.name}, line {frame.lineno} of {frame.filename.rpartition('/')[2]}"
    return ""


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Undo what runs of `module` change in its attributes and buffers, in place too."""
    tensors = [(tensor, tensor.clone()) for _, tensor in _attributes(module)]
    with unchanged(module):
        yield
    for tensor, value in tensors:
        tensor.copy_(value)


def _kept_tensors(module: nn.Module) -> dict[str, list[Tensor]]:
    """Return copies of the tensors that are no parameters, by the attribute that holds them."""
    kept: dict[str, list[Tensor]] = {}
    for name, tensor in _attributes(module):
        kept.setdefault(name, []).append(tensor.clone())
    return kept


def _attributes(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, part in module.named_modules():
        values = {name: value for name, value in vars(part).items() if name not in {"_parameters", "_buffers"}}
        for name, value in {**values, **vars(part)["_buffers"]}.items():
            if isinstance(value, Tensor | tuple | list):
                try:
                    yield from ((f"{path}.{name}".lstrip("."), leaf) for leaf in flatten(value))
                except ExportError:
                    continue


def _are_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        for a, b in zip(first, second, strict=True)
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
