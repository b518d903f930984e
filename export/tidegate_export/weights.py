"""Finds a module's weights in a checkpoint, wherever a trainer put them, and loads them.

A checkpoint is a tree of dictionaries. A module's tensors are in one of them, behind a prefix that all of them share
(`model.`, `module.`, `_orig_mod.`). Nothing is loaded unless it is sure: what is missing, what has another shape and
what could as well be other weights is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tidegate_export.errors import ExportError
from tidegate_export.weight_files import read_weights

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Parts of a name that torch.compile, FSDP and the like put in, anywhere in it."""

_AVERAGES = ("ema", "average", "avg", "swa", "shadow", "teacher")
"""Words in the names of weights that are averages of those that were trained."""

_DEPTH = 8


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What was loaded: the SHA-256 of the file, and what a user should know of how it was read."""

    sha256: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module's weights may be: a dictionary of the file, and a prefix of its keys."""

    path: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Tensor]
    """By the name in the module."""
    others: tuple[str, ...]
    """Keys of the dictionary that are not the module's."""

    @property
    def address(self) -> str:
        return ".".join((*self.path, *(part for part in self.prefix.split(".") if part)))

    @property
    def is_average(self) -> bool:
        return any(word in part.lower() for part in self.address.split(".") for word in _AVERAGES)

    def is_at(self, key: str) -> bool:
        """Whether a user means this place by `key`."""
        return self.address == key or self.address.startswith(f"{key}.")


def load_weights(module: nn.Module, path: Path, key: str | None = None) -> LoadedWeights:
    """Load the weights of `module` from the file at `path`, from the place `key` where several fit.

    Raises:
        ExportError: The file holds no weights, or others than the module's; with the reason.
    """
    content, sha256 = read_weights(path)
    needed = _needed(module)
    dictionaries = list(_dictionaries(content, ()))
    if not dictionaries:
        keys = f": its keys are {_some([str(key) for key in content])}" if isinstance(content, Mapping) else ""
        raise ExportError(f"{path} holds no dictionary of weights{keys}")
    places = [place for where, tensors in dictionaries for place in _places(where, tensors, needed)]
    fitting = [place for place in places if not _misfit(place, module, needed)]
    if key is not None:
        known = sorted({place.address for place in fitting} or {".".join(where) for where, _ in dictionaries})
        fitting = [place for place in fitting if place.is_at(key)] or [
            place for place in places if place.is_at(key) and not fitting
        ]
        if not fitting:
            raise ExportError(f"--weights-key: {path} has no weights of the module at {key!r}: it has {_some(known)}")
    if not fitting:
        place = max(places, key=lambda place: len(place.tensors))
        raise ExportError(f"{path} does not fit the module: {_misfit(place, module, needed)}")
    place = _one(fitting, path)
    if reason := _misfit(place, module, needed):
        raise ExportError(f"{path} does not fit the module: {reason}")
    _refuse_other_values(place, module, path)
    names = {_plain(name): name for name in module.state_dict()}
    tensors = {names.get(name, name): tensor for name, tensor in place.tensors.items()}
    unexpected = module.load_state_dict(tensors, strict=False).unexpected_keys
    if unexpected:  # what is loaded under another name than it was found would be lost
        raise ExportError(f"{path} does not fit the module: {_count(unexpected)} cannot be loaded")
    others = [other for other in fitting if other.address != place.address]
    return LoadedWeights(sha256, tuple(_notes(place, others, needed)))


def _needed(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's tensors by their names without wrappers."""
    return {_plain(name): tensor for name, tensor in module.state_dict().items()}


def _dictionaries(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the dictionaries that hold tensors by name, at any depth, with the keys that lead there."""
    if len(path) > _DEPTH:
        return
    if isinstance(value, list | tuple):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, Mapping):
        return
    tensors = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}
    if tensors:
        yield path, tensors
    for name, item in value.items():
        if isinstance(name, str):
            yield from _dictionaries(item, (*path, name))


def _places(path: tuple[str, ...], tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> Iterator[_Place]:
    """Yield a place for every prefix under which one of the module's names occurs."""
    plain = {_plain(key): tensor for key, tensor in tensors.items()}
    if len(plain) < len(tensors):
        plain = dict(tensors)  # a name with a wrapper and the same without: they are two
    prefixes = dict.fromkeys(
        key[: len(key) - len(alias)]
        for key in plain
        for name in needed
        for alias in _aliases(name)
        if key == alias or key.endswith(f".{alias}")
    )
    for prefix in prefixes or ("",):
        found = {alias: plain[prefix + alias] for name in needed for alias in _aliases(name) if prefix + alias in plain}
        used = {prefix + alias for alias in found}
        yield _Place(path, prefix, found, tuple(key for key in plain if key not in used))


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _aliases(name: str) -> tuple[str, ...]:
    """Return the names under which a tensor may be stored: PyTorch itself reads weight_norm's old ones."""
    path, _, last = name.rpartition(".")
    owner, is_split, attribute = f".{path}".rpartition(".parametrizations.")
    if not is_split or last not in {"original0", "original1"}:
        return (name,)
    old = f"{attribute}_{'g' if last == 'original0' else 'v'}"
    return name, f"{owner}.{old}".removeprefix(".")


def _misfit(place: _Place, module: nn.Module, needed: Mapping[str, Tensor]) -> str:
    """Say why the tensors at `place` are not the module's; empty where they are."""
    missing = [
        name
        for name in needed
        if not any(alias in place.tensors for alias in _aliases(name)) and not _may_be_missing(name, needed, place)
    ]
    shapes = [
        f"{name} is {list(tensor.shape)} in the file and {list(needed[name].shape)} in the module"
        for name, tensor in place.tensors.items()
        if name in needed and not _is_alike(tensor, needed[name])
    ]
    wrong = [_wrong_values(name, tensor, needed) for name, tensor in place.tensors.items()]
    beside = [key.removeprefix(place.prefix) for key in place.others if key.startswith(place.prefix)]
    extra = [name for name in beside if _is_part_of(name, module)]
    reasons = []
    if missing:
        reasons.append(f"{_count(missing, len(needed))} missing{_nearest(missing, beside)}")
    reasons += shapes[:3] + ([f"{len(shapes) - 3} more have another shape"] if len(shapes) > 3 else [])
    reasons += [reason for reason in wrong if reason][:1]
    if extra or (missing and beside):
        reasons.append(
            f"{_count(extra or beside)} left over{'' if missing else ': the module has fewer weights there'}"
        )
    return "; ".join(reasons)


def _may_be_missing(name: str, needed: Mapping[str, Tensor], place: _Place) -> bool:
    """Whether a tensor need not be in the file: a counter, or the same tensor under another name that is."""
    tensor = needed[name]
    if not _has_data(tensor):
        return False
    if not tensor.is_floating_point() and name.rpartition(".")[2] == "num_batches_tracked":
        return True
    return any(
        other != name and other in place.tensors and _has_data(twin) and _is_same(tensor, twin)
        for other, twin in needed.items()
    )


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Whether two names are of one tensor (tied weights)."""
    return tensor.numel() > 0 and tensor.data_ptr() == other.data_ptr() and tensor.shape == other.shape


def _has_data(tensor: Tensor) -> bool:
    """Whether the tensor's size is known: that of a lazy layer is not yet."""
    return not torch.nn.parameter.is_lazy(tensor)


def _is_alike(tensor: Tensor, wanted: Tensor) -> bool:
    if not _has_data(wanted):
        return True
    return tensor.shape == wanted.shape or (wanted.dim() == 0 and tuple(tensor.shape) == (1,))


def _wrong_values(name: str, tensor: Tensor, needed: Mapping[str, Tensor]) -> str:
    """Say what is wrong with a tensor's values; empty where nothing is."""
    if name in needed and needed[name].is_floating_point() and not tensor.is_floating_point():
        return f"{name} is {_dtype(tensor)} in the file (quantized?) and {_dtype(needed[name])} in the module"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
        return f"{name} holds NaN or infinity in the file"
    return ""


def _is_part_of(name: str, module: nn.Module) -> bool:
    """Whether a left-over tensor belongs to a layer that the module has: then the module is not the one trained."""
    modules = dict(module.named_modules())
    path = name.rpartition(".")[0]
    if (owner := modules.get(path)) is not None:
        is_layer = not any(True for _ in owner.children())
        return is_layer or (bool(path) and any(True for _ in owner.parameters(recurse=False)))
    while path not in modules:
        path, _, child = path.rpartition(".")
    return child.isdecimal() and isinstance(modules[path], nn.ModuleList | nn.Sequential)


def _one(fitting: Sequence[_Place], path: Path) -> _Place:
    """Return the place to load from: the trained weights, where an average of them is there too."""
    distinct: list[_Place] = []
    for place in fitting:
        if not any(_has_same_values(place, other) for other in distinct):
            distinct.append(place)
    trained = [place for place in distinct if not place.is_average] or distinct
    if len(trained) > 1:
        addresses = [repr(place.address) for place in trained]
        raise ExportError(
            f"{path} holds weights of the module more than once: say --weights-key, one of {_some(addresses)}"
        )
    return trained[0]


def _has_same_values(place: _Place, other: _Place) -> bool:
    return place.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in place.tensors.items()
    )


def _refuse_other_values(place: _Place, module: nn.Module, path: Path) -> None:
    """Tied weights that the file has twice, with other values: one of them would be lost."""
    by_data: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict().items():
        stored = place.tensors.get(_plain(name))
        if stored is None or not _has_data(tensor) or not tensor.numel():
            continue
        first, values = by_data.setdefault(tensor.data_ptr(), (name, stored))
        if values.shape == stored.shape and not torch.equal(values, stored):
            raise ExportError(
                f"{path}: {first} and {name} are one tensor in the module, and two that differ in the file"
            )


def _notes(place: _Place, others: Sequence[_Place], needed: Mapping[str, Tensor]) -> Iterator[str]:
    if place.path:
        yield f"taken from {'.'.join(place.path)}"
    if place.prefix:
        yield f"without the prefix {place.prefix}"
    others = [other for other in others if not _has_same_values(place, other)]
    if others:
        yield f"{_some([other.address or 'the top level' for other in others])} would fit too (--weights-key)"
    casts = {
        (_dtype(tensor), _dtype(needed[name]))
        for name, tensor in place.tensors.items()
        if name in needed and tensor.dtype != needed[name].dtype
    }
    for stored, used in sorted(casts):
        yield f"{stored} weights become {used}"
    if place.others:
        yield f"not used: {_some(place.others)}"


def _nearest(missing: Sequence[str], others: Sequence[str]) -> str:
    near = get_close_matches(missing[0], others, n=1, cutoff=0.5)
    return f" (is {near[0]} {missing[0]}?)" if near else ""


def _count(names: Sequence[str], of: int | None = None) -> str:
    return f"{len(names)}{'' if of is None else f' of {of}'} ({_some(names)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
