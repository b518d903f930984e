"""What `tidegate import` does inside its process: parses what was said, imports, tells, every error in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from pydantic import ValidationError

from tidegate.errors import BundleError
from tidegate_export.errors import ExportError
from tidegate_export.importing.importer import import_model
from tidegate_export.importing.request import (
    Request,
    parse_axes,
    parse_contexts,
    parse_named,
    parse_shapes,
    parse_states,
)
from tidegate_export.importing.summary import Imported, checks, findings


class Said(TypedDict):
    """The command line as it was typed: what goes from one process to the other."""

    file: str
    name: str | None
    version: int | None
    out: str
    states: Sequence[str]
    shapes: Sequence[str]
    batch_axes: Sequence[str]
    time_axes: Sequence[str]
    constants: Sequence[str]
    contexts: Sequence[str]
    initial: str | None
    is_within_frame: bool
    tolerance: float | None


def run(said: Said) -> tuple[str, bool]:
    """Import; return what to tell, and whether there is a bundle."""
    try:
        return "\n".join(_told(import_model(_request(said)))), True
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", False
    except (ExportError, BundleError) as error:
        return " ".join(str(error).split()), False
    except MemoryError:
        return "out of memory: the graph asks for more than --memory-limit", False


def _request(said: Said) -> Request:
    return Request(
        file=Path(said["file"]),
        name=said["name"] or _plain(Path(said["file"]).stem),
        version=said["version"],
        out=Path(said["out"]),
        states=parse_states(said["states"]),
        shapes=parse_shapes(said["shapes"]),
        batch_axes=parse_axes("--batch-axis", said["batch_axes"]),
        time_axes=parse_axes("--time-axis", said["time_axes"]),
        constants=parse_named("--constant", said["constants"]),
        contexts=parse_contexts(said["contexts"]),
        initial=None if said["initial"] is None else Path(said["initial"]),
        is_within_frame=said["is_within_frame"],
        tolerance=said["tolerance"],
    )


def _plain(stem: str) -> str:
    """Return a file's name as a bundle may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "imported"


def _told(imported: Imported) -> Iterator[str]:
    manifest = imported.manifest
    yield f"{imported.path}: {manifest.task}, {manifest.state_bytes} bytes of state per session"
    yield from findings(imported)
    yield from checks(imported)
