"""The card of an imported model: what was found in the file, for a person."""

from __future__ import annotations

import json
import math

from tidegate.bundle import Manifest, TensorSpec
from tidegate_export.importing.summary import Imported, checks, findings


def imported_card(imported: Imported) -> str:
    """Return the Markdown of `card.md`."""
    manifest = imported.manifest
    origin = manifest.provenance["import"]
    sections = [
        f"# {manifest.name}, version {manifest.version}",
        f"Imported from `{origin['file']}` (sha256 {origin['sha256']}, opset {origin['opset']}).",
        f"Of its training nothing is known here. A session's state takes {manifest.state_bytes:,} bytes.",
        "## Found\n\n" + "\n".join(f"- {line}" for line in findings(imported)),
        "## Checks at import\n\n" + "\n".join(f"- {line}" for line in checks(imported)),
        "## Call\n\n" + _call(manifest),
    ]
    if origin["constants"]:
        constants = "\n".join(f"- {name} = {value}" for name, value in origin["constants"].items())
        sections.insert(4, f"## Constants\n\n{constants}")
    return "\n\n".join(sections) + "\n"


def _call(manifest: Manifest) -> str:
    width = sum(_width(spec) for spec in manifest.inputs)
    rows = f"A step is a row of {width} values"
    if len(manifest.inputs) > 1:
        rows += ": " + ", then ".join(f"{_width(spec)} of {spec.name}" for spec in manifest.inputs)
    is_tokens = manifest.inputs[0].dtype.startswith("int") and len(manifest.inputs) == 1 and width == 1
    example = {"tokens": [0, 1]} if is_tokens else {"values": [[0.0] * width]} if width <= 8 else None
    if example is None:
        return f"{rows}."
    body = json.dumps({"sequences": [example]})
    url = f"localhost:8080/v1/models/{manifest.name}:predict"
    return f"{rows}.\n\n```\ncurl -s {url} -H 'content-type: application/json' -d '{body}'\n```"


def _width(spec: TensorSpec) -> int:
    return math.prod(axis for axis in spec.axes if isinstance(axis, int))
