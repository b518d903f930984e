"""Values that a module takes and returns: tensors nested in tuples, dictionaries, named tuples and dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from tidegate_export.errors import ExportError

Path = tuple[str | int, ...]
"""Where a tensor is in a nested value: keys and names of fields as text, places in a tuple as numbers."""


def named_leaves(value: Any, path: Path = ()) -> list[tuple[Path, Tensor]]:
    """Return the tensors in `value` with their places, depth first; None is left out."""
    if isinstance(value, Tensor):
        return [(path, value)]
    if value is None:
        return []
    return [leaf for key, item in _items(value) for leaf in named_leaves(item, (*path, key))]


def flatten(value: Any) -> list[Tensor]:
    """Return the tensors in `value`, depth first."""
    return [tensor for _, tensor in named_leaves(value)]


def refill(example: Any, leaves: list[Tensor]) -> Any:
    """Build a value nested like `example` out of the first `leaves`, which it takes away."""
    if isinstance(example, Tensor):
        return leaves.pop(0)
    if example is None:
        return None
    items = [(key, refill(item, leaves)) for key, item in _items(example)]
    if isinstance(example, Mapping):
        return type(example)(items)  # type: ignore[call-arg] # every mapping that users return takes pairs
    if is_dataclass(example) or hasattr(example, "_fields"):
        return type(example)(**{str(key): item for key, item in items})
    return type(example)(item for _, item in items)


def split_states(
    leaves: Sequence[tuple[Path, Tensor]], names: Sequence[str], count: int
) -> tuple[list[tuple[Path, Tensor]], list[Tensor]]:
    """Split what forward returns into outputs and the states that it takes itself.

    They are what it returns under the names of its arguments, else the last `count` tensors.

    Raises:
        ExportError: It returns fewer.
    """
    if count == 0:
        return list(leaves), []
    by_name = [[tensor for path, tensor in leaves if path[:1] == (name,)] for name in names]
    if all(by_name):
        states = [tensor for tensors in by_name for tensor in tensors]
        outputs = [(path, tensor) for path, tensor in leaves if path[:1] not in {(name,) for name in names}]
    else:
        outputs, states = list(leaves[: len(leaves) - count]), [tensor for _, tensor in leaves[-count:]]
    if len(states) != count:
        raise ExportError(
            f"forward takes {count} tensors of state ({', '.join(names)}) and returns {len(states)}: "
            "return the state after the outputs"
        )
    return outputs, states


def output_names(paths: Sequence[Path]) -> list[str]:
    """Name outputs by keys and fields; `output`, or `output0` and so on, where there are none."""
    if len(paths) == 1 and not any(isinstance(key, str) for key in paths[0]):
        return ["output"]
    return [
        ".".join(map(str, path)) if any(isinstance(key, str) for key in path) else f"output{index}"
        for index, path in enumerate(paths)
    ]


def is_one_number(tensor: Tensor) -> bool:
    """Whether all elements are equal."""
    return tensor.numel() == 0 or bool(torch.all(tensor == tensor.flatten()[0]))


def _items(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((item.name, getattr(value, item.name)) for item in fields(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    else:
        raise ExportError(f"forward handles a {type(value).__name__} where tensors are expected")
