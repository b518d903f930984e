"""`tidegate export` from its arguments to a bundle on disk, and every mistake in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from tests.export.user_modules import Classifier, Language
from tidegate.bundle import read_bundle
from tidegate.proof import check_bundle
from tidegate_export import command as export_command
from tidegate_export.cli import export
from tidegate_export.command import ExportRequest
from tidegate_models.networks import quantile_network, token_network
from tidegate_models.runs import RunFolder

HERE = Path(__file__).parent
MODULES = str(HERE / "user_modules.py")

app = typer.Typer()
app.command()(export)

TEXT: dict[str, Any] = {"cell": "lstm", "hidden_size": 8, "num_layers": 2, "embedding_size": 4, "dropout": 0.1}
TRAINING = {
    "steps": 900,
    "best_step": 800,
    "epochs": 1.5,
    "seconds": 120,
    "devices": 1,
    "device": "cpu",
    "seed": 7,
    "parameters": 1234,
    "network": TEXT,
    "tidegate": "0.1.0",
    "torch": "2.13.0",
}


def run_here(*arguments: str) -> tuple[str, bool]:
    """Do in this process what the command does in another."""
    said = typer.main.get_command(app).make_context("export", list(arguments)).params
    names = {field.name for field in fields(ExportRequest)}
    return export_command.run(
        {name: str(it) if isinstance(it, Path) else it for name, it in said.items() if name in names}
    )


def told(*arguments: str) -> str:
    """Return what the command prints."""
    report, is_done = run_here(*arguments)
    assert is_done, report
    return report


def refused(*arguments: str) -> str:
    """Return the one line of a command that must fail."""
    report, is_done = run_here(*arguments)
    assert not is_done, report
    assert "\n" not in report
    return report


def text_run(root: Path) -> Path:
    arguments: dict[str, Any] = {"num_tokens": 3, **TEXT}
    codec = {"kind": "characters", "characters": ["a", "b", "\ufffd"], "unknown": 2}
    report = {
        "held_out": {"test": {"bits_per_character": 1.75, "by_document": {"play": 1.75}}},
        "data": {
            "source": "plays==1.0",
            "licence": "CC BY",
            "sha256": "ab" * 32,
            "split": {"by": "play", "train": ["a"] * 9, "test": ["hamlet"]},
        },
        "training": TRAINING,
    }
    return _run(root / "my-text", "next_token", arguments, codec, report, token_network(**arguments))


def series_run(root: Path, report: dict[str, Any] | None) -> Path:
    arguments: dict[str, Any] = {"num_columns": 3, "horizon": 4, "quantiles": [0.1, 0.5, 0.9], **TEXT}
    codec = {
        "kind": "series",
        "features": [
            {"name": "load", "mean": 50.0, "scale": 20.0, "transform": "standard"},
            {"name": "hour", "period": 24.0, "transform": "cyclic"},
        ],
        "target": "load",
        "horizon": 4,
        "quantiles": [0.1, 0.5, 0.9],
        "season": 24,
        "seasonal_naive_mae": 3.5,
        "step_seconds": 3600.0,
    }
    return _run(root / "my-load", "forecast", arguments, codec, report, quantile_network(**arguments))


def _run(path: Path, task: str, arguments: Any, codec: Any, report: Any, network: torch.nn.Module) -> Path:
    folder = RunFolder(path)
    folder.create(f'name = "{path.name}"\nseed = 7\n')
    best = {"name": path.name, "task": task, "network": arguments, "weights": network.state_dict(), "codec": codec}
    folder.write_tensors(folder.best, best)
    if report is not None:
        folder.write_report(report)
    return path


def test_a_text_run_becomes_a_bundle_with_card_and_provenance(tmp_path: Path) -> None:
    out = tmp_path / "bundles"
    printed = told(str(text_run(tmp_path)), "--out", str(out))
    assert printed.startswith(f"{out / 'my-text' / '1'}: next_token, lstm, 128 bytes of state per session\n")
    assert "streaming proof" in printed
    bundle = read_bundle(out / "my-text" / "1")
    assert json.loads(bundle.files["vocabulary.json"]) == {"tokens": ["a", "b", "\ufffd"], "unknown": 2}
    provenance = bundle.manifest.provenance
    assert provenance["recipe"] == {"name": "my-text", "seed": 7}
    assert provenance["data"]["sha256"] == "ab" * 32
    assert provenance["versions"]["torch"] == torch.__version__
    card = (bundle.path / "card.md").read_text("utf-8")
    for fact in (
        "# my-text, version 1",
        "CC BY",
        "plays==1.0",
        "| bits per character | 1.750 |",
        "the other 9",
        "seed 7",
        'tidegate generate my-text --prompt "ab"',  # what this vocabulary can spell
    ):
        assert fact in card


def test_a_forecast_run_becomes_a_bundle_with_its_scaling(tmp_path: Path) -> None:
    told(str(series_run(tmp_path, None)), "--out", str(tmp_path), "--name", "load", "--version", "12")
    bundle = read_bundle(tmp_path / "load" / "12")
    assert bundle.manifest.features == ("load", "hour")
    assert bundle.manifest.provenance["series"] == {"season": 24, "step_seconds": 3600.0}
    assert json.loads(bundle.files["scaling.json"]) == {
        "features": [{"kind": "standard", "mean": 50.0, "scale": 20.0}, {"kind": "cyclic", "period": 24.0}]
    }
    card = (bundle.path / "card.md").read_text("utf-8")
    assert "without a training report" in card
    body = json.loads(card.rpartition("-d '")[2].partition("'")[0])
    assert body == {"sequences": [{"values": [[50, 1]]}]}


def test_the_next_version_is_taken_and_a_taken_version_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "bundles")
    command = [f"{MODULES}:Classifier", "--name", "c", "--example-shape", "1,8,6", "--out", out]
    told(*command)
    told(*command)
    assert sorted(path.name for path in (tmp_path / "bundles" / "c").iterdir()) == ["1", "2"]
    assert refused(*command, "--version", "1").endswith("exists with other content: choose a new version")


def test_a_module_by_its_import_path_gets_its_weights(tmp_path: Path) -> None:
    trained = Classifier()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    told(
        *("tests.export.user_modules:Classifier", "--weights", str(tmp_path / "w.pt"), "--name", "c"),
        *("--features", "a,b,c,d,e,f", "--out", str(tmp_path)),
    )
    bundle = read_bundle(tmp_path / "c" / "1")
    assert bundle.manifest.features == ("a", "b", "c", "d", "e", "f")
    assert len(bundle.manifest.provenance["weights_sha256"]) == 64
    initializer = trained.head.bias.detach().numpy().tobytes()
    assert initializer in bundle.graph


def test_a_bundle_says_what_its_features_and_outputs_are(tmp_path: Path) -> None:
    command = (f"{MODULES}:Classifier", "--name", "c", "--features", "a,b,c,d,e,f", "--out", str(tmp_path))
    meaning = (
        "--sample-rate",
        "100",
        "--frame-length",
        "6",
        "--unit",
        "a=mm",
        "--describe",
        "a=rain of the hour before",
    )
    told(*command, *meaning)
    bundle = read_bundle(tmp_path / "c" / "1")
    assert (bundle.manifest.sample_rate, bundle.manifest.frame_length) == (100.0, 6)
    assert bundle.manifest.meanings["a"].model_dump() == {"unit": "mm", "description": "rain of the hour before"}
    card = bundle.files["card.md"].decode()
    assert "- Signal: 100 samples a second, 6 a step\n- a: rain of the hour before [mm]\n" in card
    assert "there is no input, output or feature 'g'" in refused(*command, "--unit", "g=mm")


def test_a_language_model_takes_its_vocabulary_from_a_plain_list(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text('["a", "b", "c", "d"]')
    torch.save({"state_dict": Language().state_dict(), "epoch": 3}, tmp_path / "w.pt")
    told(
        *(f"{MODULES}:Language", "--weights", str(tmp_path / "w.pt"), "--name", "l", "--task", "next_token"),
        *("--vocabulary", str(tmp_path / "vocabulary.json"), "--out", str(tmp_path)),
    )
    assert json.loads(read_bundle(tmp_path / "l" / "1").files["vocabulary.json"])["unknown"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "nowhere is neither a run directory nor my_module:factory"),
        ([str(HERE)], "holds no trained network"),
        ([str(HERE), "--features", "a"], "--features goes with a module of your own"),
        ([str(HERE), "--task", "next_token"], "--task goes with a module of your own"),
        (["no_such_module:f", "--name", "m"], "no_such_module cannot be imported: ModuleNotFoundError"),
        (["no_such_file.py:f", "--name", "m"], "no_such_file.py cannot be imported: FileNotFoundError"),
        ([f"{MODULES}:missing", "--name", "m"], "has no callable 'missing'"),
        ([f"{MODULES}:Wrapped", "--name", "m"], "Wrapped() fails: TypeError"),
        (["json:dumps", "--name", "m"], "json:dumps() fails"),
        (["builtins:dict", "--name", "m"], "gives a dict, not an nn.Module"),
        ([f"{MODULES}:Tagger"], "needs --name"),
        ([f"{MODULES}:Tagger", "--name", "m"], "needs --example-shape"),
        ([f"{MODULES}:Tagger", "--name", "not a name", "--example-shape", "1,8,6"], "name: String should match"),
        ([f"{MODULES}:Tagger", "--name", "m", "--example-shape", "1,8,5"], "the module fails on an input of shape"),
        ([f"{MODULES}:Tagger", "--name", "m", "--weights", "no.pt"], "no.pt is not a file of weights"),
        ([f"{MODULES}:Tagger", "--name", "m", "--weights", MODULES], "is not a file of weights"),
        (
            [f"{MODULES}:Language", "--name", "m", "--task", "next_token", "--vocabulary", MODULES],
            "is not a vocabulary",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, arguments: list[str], reason: str) -> None:
    assert reason in refused(*arguments, "--out", str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02junk", b"PK\x03\x04junk"])
def test_a_file_that_is_no_weights_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    line = refused(f"{MODULES}:Tagger", "--name", "m", "--weights", str(tmp_path / "w.pt"), "--example-shape", "1,8,6")
    assert "w.pt is not a file of weights" in line


def test_weights_of_another_module_are_refused(tmp_path: Path) -> None:
    torch.save(Language().state_dict(), tmp_path / "w.pt")
    line = refused(f"{MODULES}:Tagger", "--name", "m", "--weights", str(tmp_path / "w.pt"), "--example-shape", "1,8,6")
    assert "w.pt does not fit the module" in line


def test_onnxruntime_has_nothing_to_warn_of_and_the_check_needs_no_torch(tmp_path: Path) -> None:
    for run in (text_run(tmp_path), series_run(tmp_path, None)):
        told(str(run), "--out", str(tmp_path / "b"))
    told(f"{MODULES}:Tagger", "--name", "tagger", "--example-shape", "1,8,6", "--out", str(tmp_path / "b"))
    script = """
import sys
from pathlib import Path
from numpy.random import default_rng
from tidegate.bundle import find_bundles, read_bundle
from tidegate.ort import onnxruntime
from tidegate.proof import check_bundle
from tidegate.replay import GraphRunner, random_inputs
for path in find_bundles(Path(sys.argv[1])):
    bundle = read_bundle(path)
    session = onnxruntime.InferenceSession(bundle.graph, providers=["CPUExecutionProvider"])
    for rows, steps in ((1, 1), (3, 1), (1, 6), (4, 9)):
        runner = GraphRunner(bundle.graph, bundle.manifest)
        session.run(None, {**random_inputs(bundle.manifest, rows, steps, default_rng(0)), **runner.initial(rows)})
    print(path.parent.name, check_bundle(path).passed)
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", script, str(tmp_path / "b")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.stderr == ""
    assert result.stdout == "my-load True\nmy-text True\ntagger True\n"


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_the_command_works_in_a_process_of_its_own_and_tells_what_came_of_it(tmp_path: Path) -> None:
    tagger = (f"{MODULES}:Tagger", "--example-shape", "1,8,6", "--out", str(tmp_path))
    done = command(*tagger, "--name", "tagger")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path}/tagger/1: stream, foreign")
    refused = command(*tagger)
    assert (refused.exit_code, refused.stdout, refused.stderr) == (2, "", "a module of your own needs --name\n")


def test_code_that_never_ends_or_asks_for_all_memory_is_ended(tmp_path: Path) -> None:
    def ended(factory: str, *limits: str) -> str:
        result = command(f"{MODULES}:{factory}", "--name", "m", "--example-shape", "1,8,6", *limits)
        assert (result.exit_code, result.stdout) == (2, "")
        return result.stderr

    assert "does not come to an end within 2 seconds (--time-limit)" in ended("endless", "--time-limit", "2")
    assert "MemoryError" in ended("greedy", "--memory-limit", "2048")


def test_the_committed_bundles_pass_their_check() -> None:
    for path in sorted((HERE.parents[1] / "bundles").glob("*/*")):
        assert check_bundle(path).max_error <= 1e-5


def test_the_command_is_listed_without_importing_torch() -> None:
    script = "import sys, tidegate_export.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
