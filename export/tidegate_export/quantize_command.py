"""What `tidegate quantize` does once onnx is known to be there: quantizes and tells, every error in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tidegate.errors import BundleError
from tidegate_export.errors import ExportError
from tidegate_export.quantize import Quantized, Request, quantize_bundle


def run(said: dict[str, Any]) -> tuple[str, bool]:
    """Quantize; return what to tell, and whether there is a bundle."""
    request = Request(
        Path(said["bundle"]), said["method"], said["name"], said["version"], Path(said["out"]), said["seconds"]
    )
    try:
        return "\n".join(_told(quantize_bundle(request))), True
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", False
    except (ExportError, BundleError) as error:
        return " ".join(str(error).split()), False


def _told(quantized: Quantized) -> Iterator[str]:
    manifest, figures = quantized.manifest, quantized.figures
    proof = manifest.proof
    assert proof is not None
    share = figures.bytes_quantized / figures.bytes_source
    yield f"{quantized.path}: {figures.bytes_quantized:,} bytes, {share:.2f} of the source's"
    worst = f"worst {max(proof.max_error, 0):.1e}, tolerance {proof.tolerance:g}"
    yield f"streaming proof: {proof.cases} comparisons, {worst}"
    yield f"batch invariant: {'yes' if manifest.batch_invariant else 'no: the server runs rows alone'}"
    yield "rows/s: " + ", ".join(f"{speed.ratio:.2f} × at batch {speed.batch}" for speed in figures.speeds)
    score = figures.score
    if score is None:
        yield f"held-out figures were not taken: {figures.unscored}"
    else:
        yield f"held-out {score.unit}: {score.source:.4f} → {score.quantized:.4f} ({score.data})"
