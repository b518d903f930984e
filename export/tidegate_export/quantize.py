"""`tidegate quantize` from a bundle to a smaller one: rewritten, proved, measured, written with a card that says all.

Knows the order of the steps and what the manifest must say of the result. How graphs are rewritten (`quantize_methods`)
and measured (`quantize_figures`) is not known here. Needs onnx and onnxruntime, and torch only to score held-out data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tidegate.bundle import (
    CARD,
    GRAPH,
    MOST_TOLERANCE,
    Bundle,
    ForecastCodec,
    Json,
    Manifest,
    Proof,
    TokenCodec,
    next_version,
    read_bundle,
    write_bundle,
)
from tidegate.errors import BundleError
from tidegate.proof import ABSOLUTE, is_batch_invariant, prove
from tidegate_export.errors import ExportError
from tidegate_export.held_out import held_out
from tidegate_export.quantize_figures import Figures, Pair, quantized_card, relative_error, score, speeds
from tidegate_export.quantize_methods import Method, operators, rewrite

_MOST_ERROR = 0.1
"""Of the outputs' variation: beyond it the result is another model, not a rounded one."""
_SEEDS = range(4)


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """The command line."""

    source: Path
    method: Method = "static"
    name: str | None = None
    version: int | None = None
    out: Path = Path("bundles")
    seconds: float = 0.3
    """How long each graph is timed in each of five rounds at each batch size."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """The bundle as written, and what was measured."""

    path: Path
    manifest: Manifest
    figures: Figures


def quantize_bundle(request: QuantizeRequest) -> Quantized:
    """Write the bundle that `request` asks for.

    Raises:
        ExportError: The method cannot do it, or what comes out is too far from the source.
        BundleError: The source is no sound bundle, or the version exists with other content.
    """
    source = read_bundle(request.source.resolve())
    graph, manifest = rewrite(source.graph, source.manifest, request.method)
    manifest = _named(manifest, request)
    manifest = manifest.model_copy(update={"batch_invariant": _is_invariant(graph, manifest, request.method)})
    pair = Pair(source, graph, manifest)
    proof = _proof(graph, manifest)
    figures = _figures(source, graph, pair, request)
    provenance = _provenance(source, graph, request, figures)
    manifest = manifest.model_copy(update={"proof": proof, "provenance": provenance})
    files = {**_codec_files(source), GRAPH: graph, CARD: quantized_card(manifest, source, figures).encode()}
    return Quantized(write_bundle(request.out, manifest, files), manifest, figures)


def _named(manifest: Manifest, request: QuantizeRequest) -> Manifest:
    suffix = "fp16" if request.method == "fp16" else "int8"
    name = request.name or f"{manifest.name}-{suffix}"
    number = next_version(request.out, name) if request.version is None else str(request.version)
    # Validated anew, for a name from the command line may be none.
    return Manifest.model_validate({**manifest.model_dump(), "name": name, "version": number})


def _is_invariant(graph: bytes, manifest: Manifest, method: Method) -> bool:
    """Say whether rows keep to themselves, as `manifest`, still the source's in this, says of the source.

    Measured, but for fp16: it rounds element by element, so neighbours change at most a last bit, as in fp32; only that
    its last bit is larger than what counts as equal. The proof looks at it within the tolerance of fp16.
    """
    if method == "fp16" or not manifest.is_batchable:
        return manifest.batch_invariant
    return all(is_batch_invariant(graph, manifest, seed=seed) for seed in _SEEDS)


def _proof(graph: bytes, manifest: Manifest) -> Proof:
    """Prove within 1e-5 if that is so, else within a tolerance that fits what several proofs saw.

    That the source has no hidden memory was proved at 1e-5 when it was exported, and rounding adds none; the wider
    tolerance allows what the rounding itself does to a sequence that is cut otherwise.
    """
    worst = max(_worst(graph, manifest, seed) for seed in _SEEDS)
    tolerance = ABSOLUTE if worst <= ABSOLUTE else min(_round_up(2 * worst), MOST_TOLERANCE)
    return prove(graph, manifest, tolerance=tolerance, reach=_stated(manifest))


def _stated(manifest: Manifest) -> int | None:
    """Return the reach that the user stated for the source, whose proof the manifest still has."""
    return None if manifest.proof is None else manifest.proof.stated_reach


def _worst(graph: bytes, manifest: Manifest, seed: int) -> float:
    try:
        return prove(graph, manifest, seed=seed, tolerance=MOST_TOLERANCE, reach=_stated(manifest)).max_error
    except BundleError as error:
        raise ExportError(
            f"rounding makes too much depend on how a sequence is cut ({error.message}): --method static or weight-only"
        ) from error


def _round_up(value: float) -> float:
    """Return the next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    step = next(step for step in (1, 2, 5, 10) if step * power >= value)
    return float(f"{step * power:.0e}")


def _figures(source: Bundle, graph: bytes, pair: Pair, request: QuantizeRequest) -> Figures:
    error = relative_error(pair)
    if not error <= _MOST_ERROR:  # NaN too
        raise ExportError(
            f"the result differs from {source.manifest.name} by {error:.0%} of its variation: rounding destroys it "
            f"(--method {request.method})"
        )
    scored, reason = None, ""
    data, codec = held_out(source), source.manifest.codec
    if isinstance(data, str):
        reason = data
    elif isinstance(codec, TokenCodec | ForecastCodec) and codec.surprise:
        scored = score(pair, data, codec.surprise, codec.surprise_unit)
    sizes = len(source.graph), len(graph)
    return Figures(*sizes, error, speeds(pair, request.seconds), scored, reason)


def _provenance(source: Bundle, graph: bytes, request: QuantizeRequest, figures: Figures) -> dict[str, Json]:
    manifest = source.manifest
    return {
        "quantization": {
            "method": request.method,
            "operators": operators(graph),
            "figures": figures.as_json(),
            "versions": {name: version(name) for name in ("tidegate", "onnx", "onnxruntime")},
        },
        "source": {
            "name": manifest.name,
            "version": manifest.version,
            "sha256": source.sha256,
            "provenance": manifest.provenance,
        },
    }


def _codec_files(source: Bundle) -> dict[str, bytes]:
    """Everything that is not of the source's weights: vocabulary and scaling, but no other graph and no card."""
    return {name: data for name, data in source.files.items() if name != CARD and not name.endswith(".onnx")}


def run(said: dict[str, Any]) -> tuple[str, bool]:
    """Quantize; return what to tell, and whether there is a bundle."""
    request = QuantizeRequest(
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
