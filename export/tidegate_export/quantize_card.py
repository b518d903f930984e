"""The card of a quantized bundle: what was done to which bundle, and what that costs and gains."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.bundle import CARD, Bundle, Manifest
from tidegate_export.quantize_figures import Figures

_DONE = {
    "static": "int8 weights and int8 activations with fixed scales (LSTM layers whose inputs have certain bounds)",
    "dynamic": "int8 weights and int8 activations whose scales are taken anew in every run",
    "weight-only": "int8 weights, turned back into fp32 when the model is loaded",
    "fp16": "fp16 weights, activations and states",
}


def quantized_card(manifest: Manifest, source: Bundle, figures: Figures) -> str:
    """Return the Markdown of `card.md`: figures first, then the source's own card."""
    origin = f"{source.manifest.name}, version {source.manifest.version}"
    method = manifest.provenance["quantization"]["method"]
    sections = [
        [f"# {manifest.name}, version {manifest.version}", "", f"{origin}, made smaller: {_DONE[method]}."],
        ["## What became of it", "", *_facts(manifest, source)],
        ["## Figures", "", *_figures(figures)],
        ["## Checks", "", *_checks(manifest)],
        [f"# Card of {origin}", "", "Figures and checks below are the source's.", "", *_source_card(source)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _facts(manifest: Manifest, source: Bundle) -> Iterator[str]:
    quantization = manifest.provenance["quantization"]
    yield f"- Method: {quantization['method']}"
    yield "- Operators that hold weights: " + ", ".join(
        f"{count} {name}" for name, count in quantization["operators"].items()
    )
    yield f"- Source: SHA-256 {source.sha256} of its manifest"
    yield f"- State of a session: {manifest.state_bytes:,} bytes"


def _figures(figures: Figures) -> Iterator[str]:
    yield "| | source | this | |"
    yield "| --- | ---: | ---: | ---: |"
    share = figures.bytes_quantized / figures.bytes_source
    yield f"| graph, bytes | {figures.bytes_source:,} | {figures.bytes_quantized:,} | {share:.2f} × |"
    for speed in figures.speeds:
        rates = f"{speed.source:,.0f} | {speed.quantized:,.0f} | {speed.ratio:.2f} ×"
        yield f"| single steps, rows/s at batch {speed.batch} | {rates} |"
    score = figures.score
    if score is not None:
        change = score.quantized - score.source
        yield f"| held-out {score.unit} per step | {score.source:.4f} | {score.quantized:.4f} | {change:+.4f} |"
    yield ""
    yield (
        f"Rates: onnxruntime alone, one CPU thread, the machine that wrote this. Outputs differ from the source's by "
        f"{figures.error:.2%} of their variation (root mean square, random input)."
    )
    if score is not None:
        yield f"Held-out: {score.data}; {score.steps:,} steps."
    else:
        yield f"Held-out figures were not taken: {figures.unscored}."


def _checks(manifest: Manifest) -> Iterator[str]:
    proof = manifest.proof
    assert proof is not None
    yield (
        f"- Streaming proof: {proof.cases} comparisons in {proof.runtime}, worst |Δ| - 1e-4·|x| = "
        f"{max(proof.max_error, 0):.1e}, tolerance {proof.tolerance:g}"
    )
    if proof.tolerance > 1e-5:
        yield "- Results depend on how a sequence is cut into chunks, by up to that tolerance."
    if manifest.batch_invariant:
        yield "- `batch_invariant` is true: a row's result is its own, whatever its neighbours in a batch."
    else:
        yield (
            "- `batch_invariant` is false: a row's result depends on its neighbours in a batch. The server runs rows "
            "alone unless `allow_batch_dependence` is set, so that the rates above at batch 64 and 256 are not reached."
        )


def _source_card(source: Bundle) -> list[str]:
    """The source's card one level down, without its title and its calls."""
    text = source.files.get(CARD, b"").decode(errors="replace")
    body = text.partition("\n## ")[2].partition("\n## Call")[0]
    return [f"## {body}".rstrip()] if body else ["It has none."]
