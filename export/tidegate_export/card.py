"""The model card: what a bundle is, for a person. Written from the manifest and the training's report, nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from tidegate.bundle import ForecastCodec, Json, Manifest, TensorCodec, TokenCodec
from tidegate_export.meaning import described

_PURPOSE = {
    "next_token": "Predicts the next token of a sequence, step by step.",
    "forecast": "Forecasts the steps ahead in quantiles, after every step of a sequence.",
    "stream": "Tensors in, tensors out, step by step, with its state.",
}

_CHART = "Surprise, where all is well"


def card(manifest: Manifest, report: Mapping[str, Json], example: Json) -> str:
    """Return the Markdown of `card.md`; `example` is one sequence as `:predict` takes it."""
    sections = [
        [f"# {manifest.name}, version {manifest.version}", "", _PURPOSE.get(manifest.task, manifest.task)],
        ["## Model", "", *_model(manifest, report)],
        ["## Training", "", *_training(report)],
        ["## Figures", "", *_figures(report)],
        ["## Checks at export", "", *_checks(manifest)],
        ["## Call", "", *_call(manifest, example)],
    ]
    return with_chart("\n\n".join("\n".join(section) for section in sections) + "\n", manifest)


def with_chart(text: str, manifest: Manifest) -> str:
    """Return a card with what the manifest says of its chart, in the place of what the card said."""
    kept = [section for section in text.split("\n## ") if not section.startswith(_CHART)]
    if manifest.drift is not None:
        kept.insert(len(kept) - 1, "\n".join([_CHART, "", *_chart(manifest), ""]))
    return "\n## ".join(kept)


def _model(manifest: Manifest, report: Mapping[str, Json]) -> Iterator[str]:
    yield f"- Cell: {manifest.cell}"
    network = report.get("training", {}).get("network", {})
    if network:
        yield f"- Layers: {network['num_layers']} of {network['hidden_size']} units"
    if "parameters" in report.get("training", {}):
        yield f"- Parameters: {report['training']['parameters']:,}"
    yield f"- State of a session: {manifest.state_bytes:,} bytes in {len(manifest.states)} tensors"
    if isinstance(manifest.codec, TokenCodec):
        yield f"- Vocabulary: {manifest.output(manifest.codec.output).axes[-1]} tokens"
    if manifest.features:
        yield f"- Features, in order and in data units: {', '.join(manifest.features)}"
    for line in described(manifest):
        yield f"- {line[0].upper()}{line[1:]}" if line.startswith("signal: ") else f"- {line}"
    if isinstance(manifest.codec, ForecastCodec):
        codec = manifest.codec
        quantiles = ", ".join(f"{quantile:g}" for quantile in codec.quantiles)
        yield f"- Forecast: {codec.target}, {codec.horizon} steps ahead, quantiles {quantiles}"


def _training(report: Mapping[str, Json]) -> Iterator[str]:
    if not report:
        yield "Not known: the weights came without a training report."
        return
    data, training = report["data"], report["training"]
    for label, key in (
        ("Data", "source"),
        ("Files", "files"),
        ("Licence of the data", "licence"),
        ("SHA-256", "sha256"),
    ):
        if key in data:
            yield f"- {label}: {data[key]}"
    if "split" in data:
        yield f"- Split by {data['split']['by']}; " + "; ".join(_splits(data["split"]))
    yield (
        f"- {training['steps']:,} steps ({training['epochs']} epochs) in {training['seconds'] / 60:.1f} minutes on "
        f"{training['devices']} {training['device']}, seed {training['seed']}; "
        f"kept: step {training['best_step']:,}, the best on validation"
    )
    yield f"- tidegate {training['tidegate']}, torch {training['torch']}; recipe: `provenance` in `manifest.json`"


def _splits(split: Mapping[str, Json]) -> Iterator[str]:
    for name, value in split.items():
        if isinstance(value, list):
            yield f"{name}: {', '.join(value) if len(value) <= 5 else f'the other {len(value)}'}"
        elif name != "by":
            yield f"{name}: {value}" if isinstance(value, float) else f"{name} from {value}"


def _figures(report: Mapping[str, Json]) -> Iterator[str]:
    splits = report.get("held_out", {})
    if not splits:
        yield "None are known."
        return
    names = [name for name, value in next(iter(splits.values())).items() if isinstance(value, int | float)]
    yield f"| | {' | '.join(splits)} |"
    yield f"| --- |{' ---: |' * len(splits)}"
    for name in names:
        yield f"| {name.replace('_', ' ')} | {' | '.join(_number(figures[name]) for figures in splits.values())} |"


def _checks(manifest: Manifest) -> Iterator[str]:
    proof, parity = manifest.proof, manifest.provenance.get("parity")
    if proof is not None:
        worst = f"worst |Δ| - 1e-4·|x| = {proof.max_error:.1e}"
        yield f"- Streaming proof: {proof.cases} comparisons in {proof.runtime}, {worst}, {proof.described_reach}"
    if parity:
        yield f"- Parity with PyTorch: {parity['cases']} sequences, worst {parity['max_error']:.1e}"
    if not manifest.batch_invariant:
        yield "- A row's result depends on its neighbours in a batch: the server runs rows alone."


def _chart(manifest: Manifest) -> Iterator[str]:
    drift, codec = manifest.drift, manifest.codec
    assert drift is not None
    unit = "" if isinstance(codec, TensorCodec) else f" {codec.surprise_unit}"
    yield (
        f"- Where all is well: {drift.mean:.3f} ± {drift.spread:.3f}{unit} over blocks of {drift.block} steps "
        f"({drift.blocks:,} blocks: {drift.data})"
    )
    yield f"- Correlation of neighbouring blocks: {drift.autocorrelation:.2f}, which the limits allow for"
    warning, drifted = drift.warning, drift.drift
    yield (
        f"- Moving average (factor {drift.factor:g}): warning beyond {warning.width:g} of its standard deviations, "
        f"drift beyond {drifted.width:g}"
    )
    yield f"- False alarms: a warning every {warning.run_length:,.0f} blocks, drift every {drifted.run_length:,.0f}"
    for feature, (low, high) in drift.ranges.items():
        yield f"- Range of {feature} in training: {low:,.6g} to {high:,.6g}"


def _call(manifest: Manifest, example: Json) -> Iterator[str]:
    yield "```"
    if "text" in example:
        yield f'tidegate generate {manifest.name} --prompt "{example["text"]}"'
    body = json.dumps({"sequences": [example]}, ensure_ascii=False)
    url = f"localhost:8080/v1/models/{manifest.name}:predict"
    yield f"curl -s {url} -H 'content-type: application/json' -d '{body}'"
    yield "```"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:#.4g}"
