"""`tidegate quantize`: what becomes int8 and what does not, that it still streams, that the card says what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from typer.testing import CliRunner

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tidegate.bundle import GRAPH, Bundle, TokenCodec, read_bundle, write_bundle
from tidegate.engine.runner import Runner
from tidegate.proof import ABSOLUTE, check_bundle, excess
from tidegate.replay import GraphRunner, random_inputs
from tidegate_export.candidate import export_candidate
from tidegate_export.cli import quantize
from tidegate_export.errors import ExportError
from tidegate_export.networks import token_candidate
from tidegate_export.quantize import QuantizeRequest, quantize_bundle
from tidegate_export.quantize_graph import rounded
from tidegate_export.quantize_methods import Method, rewrite
from tidegate_models.networks import token_network
from tidegate_models.text import Vocabulary, bits_per_character

app = typer.Typer()
app.command()(quantize)


def told(*arguments: object) -> str:
    """Run the command; return what it printed."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--seconds", "0"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """Run a command that must fail; return its one line."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--seconds", "0"], catch_exceptions=False)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.strip()


def made(source: Path, method: Method, root: Path) -> Bundle:
    return read_bundle(quantize_bundle(QuantizeRequest(source, method, out=root, seconds=0)).path)


def quantization(bundle: Bundle) -> Any:
    return bundle.manifest.provenance["quantization"]


def card(bundle: Bundle) -> str:
    return (bundle.path / "card.md").read_text("utf-8")


def altered(root: Path, source: Path, constant: int, change: Any) -> Path:
    """Write version 2 of `source` with one constant of its graph changed; the proof is taken over."""
    model = onnx.load(source / GRAPH)
    tensor = next(item for item in model.graph.initializer if item.name == f"constant_{constant}")
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    bundle = read_bundle(source)
    files = {name: (source / name).read_bytes() for name in bundle.manifest.files}
    manifest = bundle.manifest.model_copy(update={"version": "2"})
    return write_bundle(root, manifest, {**files, GRAPH: model.SerializeToString()})


def test_fixed_scales_keep_rows_and_cuts_apart_as_fp32_does(tmp_path: Path) -> None:
    bundle = made(write_tiny_bundle(tmp_path), "static", tmp_path)
    assert quantization(bundle)["operators"] == {"DynamicQuantizeLSTM": 2, "MatMulIntegerToFloat": 1}
    assert bundle.manifest.batch_invariant
    proof = check_bundle(bundle.path)
    assert (proof.passed, proof.tolerance) == (True, ABSOLUTE)
    assert proof == bundle.manifest.proof
    assert "a row's result is its own" in card(bundle)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    neighbours=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_with_fixed_scales_any_cut_among_any_neighbours_gives_what_the_row_alone_gives(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], neighbours: int, seed: int
) -> None:
    source = read_bundle(write_tiny_bundle(tmp_path_factory.mktemp("tiny"), hidden=24))
    graph, manifest = rewrite(source.graph, source.manifest, "static")
    runner = GraphRunner(graph, manifest)
    inputs = random_inputs(manifest, neighbours + 1, sum(lengths), np.random.default_rng(seed))
    alone = runner.walk(runner.row(inputs, manifest.inputs, 0), [sum(lengths)])
    among = runner.row_of(runner.walk(inputs, lengths), 0)
    for name, values in (alone.outputs | alone.states).items():
        assert excess(values, (among.outputs | among.states)[name]) <= ABSOLUTE


@pytest.mark.parametrize("method", ["static", "dynamic", "weight-only", "fp16"])
@pytest.mark.parametrize("write", [write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle])
def test_every_method_stays_near_its_source_and_passes_its_check(tmp_path: Path, method: Method, write: Any) -> None:
    bundle = made(write(tmp_path, cell="lstm"), method, tmp_path)
    assert quantization(bundle)["figures"]["error"] < 0.05
    assert check_bundle(bundle.path) == bundle.manifest.proof
    assert Runner(bundle).provider == "CPUExecutionProvider"


def test_dynamic_scales_are_found_to_depend_on_the_batch_and_on_the_cut(tmp_path: Path) -> None:
    bundle = made(write_tiny_bundle(tmp_path), "dynamic", tmp_path)
    assert quantization(bundle)["operators"]["DynamicQuantizeLSTM"] == 2
    assert not bundle.manifest.batch_invariant
    proof = bundle.manifest.proof
    assert proof is not None
    assert ABSOLUTE < proof.max_error <= proof.tolerance / 2
    assert f"{proof.tolerance:.0e}"[0] in "125"
    assert "runs rows alone unless `allow_batch_dependence`" in " ".join(card(bundle).split())


def test_a_layer_whose_input_has_no_bounds_stays_fp32(tmp_path: Path) -> None:
    bundle = made(write_tiny_stream_bundle(tmp_path, cell="lstm"), "static", tmp_path)
    operators = {"DynamicQuantizeLSTM": 1, "LSTM": 1, "MatMulIntegerToFloat": 1}
    assert quantization(bundle)["operators"] == operators
    assert "1 DynamicQuantizeLSTM, 1 LSTM" in card(bundle)


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_a_cell_that_onnxruntime_has_no_int8_operator_for_is_refused_by_name(
    tmp_path: Path, method: Method, cell: str
) -> None:
    message = refused(write_tiny_bundle(tmp_path, cell=cell), "--method", method, "--out", tmp_path)
    assert f"the graph has {cell.upper()} operators" in message
    assert "--method weight-only" in message
    assert not (tmp_path / "tiny-int8").exists()


def test_stored_weights_alone_make_any_cells_file_smaller_and_nothing_else(tmp_path: Path) -> None:
    source = write_tiny_bundle(tmp_path, cell="gru", hidden=32)
    bundle = made(source, "weight-only", tmp_path)
    assert (bundle.path / GRAPH).stat().st_size < 0.45 * (source / GRAPH).stat().st_size
    assert quantization(bundle)["operators"] == {"GRU": 2, "MatMul": 1}
    assert bundle.manifest.batch_invariant
    assert bundle.manifest.proof is not None
    assert bundle.manifest.proof.tolerance == ABSOLUTE


def test_half_precision_halves_the_state_and_leaves_outputs_whole(tmp_path: Path) -> None:
    source = read_bundle(write_tiny_bundle(tmp_path))
    told(source.path, "--fp16", "--out", tmp_path)
    bundle = read_bundle(tmp_path / "tiny-fp16" / "1")
    assert bundle.manifest.state_bytes * 2 == source.manifest.state_bytes
    assert {spec.dtype for spec in bundle.manifest.outputs} == {"float32"}
    assert bundle.manifest.proof is not None
    assert ABSOLUTE < bundle.manifest.proof.tolerance <= 0.1
    assert bundle.manifest.batch_invariant


def test_a_bundle_says_what_it_was_made_of_and_brings_its_codec_files(tmp_path: Path) -> None:
    source = read_bundle(write_tiny_bundle(tmp_path))
    printed = told(source.path, "--out", tmp_path / "out", "--name", "small", "--version", "7")
    bundle = read_bundle(tmp_path / "out" / "small" / "7")
    assert printed.startswith(f"{bundle.path}: ")
    assert "batch invariant: yes" in printed
    assert "held-out figures were not taken: the bundle does not say what it was trained on" in printed
    assert bundle.files["vocabulary.json"] == source.files["vocabulary.json"]
    assert quantization(bundle)["method"] == "static"
    origin = bundle.manifest.provenance["source"]
    assert (origin["name"], origin["version"], origin["sha256"]) == ("tiny", "1", source.sha256)
    assert "# small, version 7" in card(bundle)
    assert "rows/s at batch 256" in card(bundle)


def test_the_next_version_is_taken(tmp_path: Path) -> None:
    source = write_tiny_bundle(tmp_path)
    for version in ("1", "2"):
        assert str(tmp_path / "tiny-int8" / version) in told(source, "--out", tmp_path)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    source = write_tiny_bundle(tmp_path)
    assert "no readable manifest.json" in refused(tmp_path / "nowhere" / "1", "--out", tmp_path)
    assert refused(source, "--out", tmp_path, "--name", "no/name").startswith("name: ")
    assert "leave --method out" in refused(source, "--fp16", "--method", "static")
    assert "choose a new version" in refused(source, "--out", tmp_path, "--name", "tiny", "--version", 1)


def test_what_rounding_would_destroy_is_refused(tmp_path: Path) -> None:
    def with_outlier(table: Any) -> Any:
        return np.concatenate((table[:-1], table[-1:] * 10_000))

    source = altered(tmp_path, write_tiny_bundle(tmp_path), 0, with_outlier)
    with pytest.raises(ExportError, match="of its variation: rounding destroys it"):
        made(source, "static", tmp_path)


def test_quantizing_needs_no_torch(tmp_path: Path) -> None:
    source = write_tiny_bundle(tmp_path)
    program = (
        "import sys; from pathlib import Path; from tidegate_export.quantize import QuantizeRequest, quantize_bundle\n"
        "for method in ('static', 'dynamic', 'weight-only', 'fp16'):\n"
        "    request = QuantizeRequest(Path(sys.argv[1]), method, name=method, out=Path(sys.argv[2]), seconds=0)\n"
        "    quantize_bundle(request)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(source), str(tmp_path)], check=True, timeout=60)


def trained_bundle(root: Path, file: Path) -> tuple[Bundle, Any, list[torch.Tensor]]:
    """A bundle of an untrained network with the recipe of a user's text; the network; its test documents."""
    text = "".join(sorted("to be, or not to be: that is the question.\n" * 40)) + "to be or not to be " * 200
    file.write_text(text, "utf-8")
    vocabulary = Vocabulary.of(text, 1024)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"cell": "lstm", "hidden_size": 12, "num_layers": 2, "embedding_size": 6}
    network = token_network(num_tokens=len(vocabulary.characters), **shape).eval()
    training = {"steps": 1, "streams": 2, "window": 8, "learning_rate": 0.1}
    recipe = {"name": "mine", "task": "next_token", "data": {"file": str(file)}, "network": shape, "training": training}
    codec = {"tokens": list(vocabulary.characters), "unknown": None}
    candidate = token_candidate(network, codec, name="mine", version="1", provenance={"recipe": recipe}, report={})
    path = export_candidate(candidate, root).path
    return read_bundle(path), network, [vocabulary.encode(text[int(len(text) * 0.95) :])]


def test_held_out_bits_are_those_of_the_network_before_and_near_them_after(tmp_path: Path) -> None:
    source, network, documents = trained_bundle(tmp_path, tmp_path / "my.txt")
    result = quantize_bundle(QuantizeRequest(source.path, out=tmp_path, seconds=0))
    score = result.figures.score
    assert score is not None
    assert score.source == pytest.approx(bits_per_character(network, documents)[0], abs=1e-4)
    assert abs(score.quantized - score.source) < 0.02
    assert score.steps == len(documents[0])
    assert isinstance(source.manifest.codec, TokenCodec)
    assert f"| held-out bits per step | {score.source:.4f} |" in (result.path / "card.md").read_text("utf-8")


def test_where_the_data_is_gone_the_card_says_so(tmp_path: Path) -> None:
    source, _, _ = trained_bundle(tmp_path, tmp_path / "my.txt")
    (tmp_path / "my.txt").unlink()
    bundle = made(source.path, "static", tmp_path)
    assert "Held-out figures were not taken: the training's data is not at hand: no such file" in card(bundle)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_a_weight_is_at_most_half_a_step_from_where_it_was(seed: int, rows: int, columns: int) -> None:
    weights = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    weights[0] = 0
    small, scales = rounded(weights, axis=1)
    assert small.dtype == np.int8
    assert scales.shape == (rows, 1)
    assert np.all(np.abs(small * scales - weights) <= scales * 0.5001)
    assert not small[0].any()
