"""Reads a file of weights, whoever wrote it, into dictionaries of tensors.

Nothing in a file is executed: `torch.load` is called with `weights_only=True`, and an object of a class that it does
not allow becomes an `OpaqueObject`. Which tensors belong to a module is not known here (`weights`).
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tidegate_export.errors import ExportError

_INDEX = ".index.json"
_MOST_CLASSES = 64
"""Foreign classes in one file. More are no checkpoint's settings."""

_MOST_SHARDS = 1024


class OpaqueObject:
    """Stands where a pickle has an object of a class that is not loaded. Its content is dropped."""

    global_name = ""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Ignore what the object is made of."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Ignore what the object is made of."""

    def __setstate__(self, state: Any) -> None:
        """Ignore what the object holds."""


def read_weights(path: Path) -> tuple[Any, str]:
    """Return what the file at `path` holds, dictionaries of tensors among it, and the SHA-256 of its bytes.

    Takes files of `torch.save`, `.safetensors` (or the `.index.json` of several) and `.npz`.

    Raises:
        ExportError: It is none of these, or it holds a pickled object instead of weights.
    """
    digest = hashlib.sha256()
    try:
        return _read(path, digest), digest.hexdigest()
    except OSError as error:
        raise ExportError(f"{path} is not a file of weights: {error.strerror or error}") from error


def _read(path: Path, digest: Any) -> Any:
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        while block := file.read(1 << 20):
            digest.update(block)
    if head.startswith(b"version https://git-lfs"):
        raise ExportError(f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull")
    if path.name.endswith(_INDEX):
        return _read_shards(path, digest)
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return _read_safetensors(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return _read_arrays(path)
        if any(PurePath(name).name == "constants.pkl" for name in names):
            raise ExportError(f"{path} is a TorchScript archive: save the state_dict() of the Python module instead")
    return _read_pickle(path)


def _read_shards(path: Path, digest: Any) -> dict[str, Tensor]:
    """Read the files that an index names; they lie beside it."""
    try:
        files = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(f"{path} is no index of weight files: it has no weight_map") from error
    if len(files) > _MOST_SHARDS or not all(isinstance(name, str) and PurePath(name).name == name for name in files):
        raise ExportError(f"{path} names weight files that do not lie beside it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(files):
        shard = _read(path.with_name(name), digest)
        if not isinstance(shard, Mapping):
            raise ExportError(f"{path.with_name(name)} holds no dictionary of weights")
        tensors |= shard
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ExportError(f"{path} is no sound safetensors file: {_first_line(error)}") from error


def _read_arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} holds an array that is no weight: {_first_line(error)}") from error


def _read_pickle(path: Path) -> Any:
    """Read what `torch.save` wrote, with an `OpaqueObject` for each object of a class that is not known to be safe."""
    foreign: list[tuple[type[OpaqueObject], str]] = []
    while True:
        try:
            with torch.serialization.safe_globals(list(foreign)):
                content = torch.load(path, weights_only=True, map_location="cpu")
            break
        except Exception as error:  # what is no pickle makes torch.load fail in whatever way its bytes are misread
            text = str(error)
            found = re.search(r"Unsupported global: GLOBAL (\S+) was not an allowed global", text)
            if found is None or len(foreign) >= 2 * _MOST_CLASSES:
                if ".tar format" in text:
                    raise ExportError(
                        f"{path} is in PyTorch's old tar format: load it and call torch.save anew"
                    ) from error
                # torch's advice, to load the file without weights_only, would run its code.
                reason = text.partition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
                raise ExportError(f"{path} is not a file of weights: {reason or _first_line(error)}") from error
            opaque = type("Opaque", (OpaqueObject,), {"global_name": found[1]})
            foreign += [(opaque, found[1]), (opaque, f"builtins.{found[1]}")]  # torch's message leaves `builtins.` out
    if isinstance(content, OpaqueObject):
        raise ExportError(
            f"{path} holds a whole pickled object ({content.global_name}), which would run its code: "
            "save its state_dict() instead"
        )
    return content


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
