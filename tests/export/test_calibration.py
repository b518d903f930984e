"""A bundle's control chart, from held-out data to limits: what is learned, from what, and where it cannot be."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tests.bundles import VOCABULARY, write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tests.service.serving import change_bundle
from tidegate.bundle import Bundle, DriftCalibration, Limit, read_bundle
from tidegate.drift import Chart
from tidegate_export.calibration import RUN_LENGTHS, Learned, Passages, calibrate, chart_of, learn, surprises
from tidegate_export.cli import export
from tidegate_export.held_out import Calibration, calibration
from tidegate_models.recipe import load_recipe

app = typer.Typer()
app.command()(export)


def made_of(path: Path, text: str, tmp_path: Path) -> Bundle:
    """The bundle again, as if it had been trained on a file of this text."""
    file = tmp_path / "text.txt"
    file.write_text(text, "utf-8")
    recipe = load_recipe("text").model_dump(mode="json")
    recipe["data"]["file"] = str(file)
    return change_bundle(path, "7", provenance={"recipe": recipe})


def sentences(length: int) -> str:
    """Text that holds every character of the tiny bundle's vocabulary, and no other."""
    random = np.random.default_rng(3)
    return "".join([*random.choice(list(VOCABULARY), length - len(VOCABULARY)), *VOCABULARY])


def learned(length: int, correlation: float) -> Learned:
    """Blocks that depend on their neighbours, around 2 with a spread of about a half."""
    random = np.random.default_rng(5)
    values = [0.0]
    for noise in random.standard_normal(length):
        values.append(correlation * values[-1] + math.sqrt(1 - correlation**2) * noise)
    return Learned((2 + 0.5 * np.array(values[1:]),), 16)


def test_limits_of_independent_blocks_are_those_of_the_books() -> None:
    drift = chart_of(learned(20_000, 0.0), "made up")
    assert drift.mean == pytest.approx(2.0, abs=0.02)
    assert drift.spread == pytest.approx(0.5, rel=0.02)
    assert abs(drift.autocorrelation) < 0.03
    # L = 2.814 gives 500 blocks and 3.05 about 1,000 (Lucas & Saccucci 1990), by limits that do not widen.
    assert drift.drift.width == pytest.approx(3.05, abs=0.12)
    assert drift.drift.run_length == pytest.approx(1000, rel=0.2)
    assert drift.warning.run_length == pytest.approx(100, rel=0.2)


def test_blocks_that_depend_on_each_other_get_wider_limits_and_as_few_false_alarms() -> None:
    plain, dependent = chart_of(learned(20_000, 0.0), ""), chart_of(learned(20_000, 0.5), "")
    assert dependent.autocorrelation == pytest.approx(0.5, abs=0.03)
    assert dependent.drift.width > 1.3 * plain.drift.width
    assert dependent.drift.run_length == pytest.approx(RUN_LENGTHS["drift"], rel=0.2)


def test_run_lengths_are_those_of_the_chart_that_the_service_keeps() -> None:
    it = learned(5000, 0.3)
    drift = chart_of(it, "")
    chart, lengths = Chart(drift), []
    means = learned(400_000, 0.3).means.tolist()
    charted = chart.start()
    for mean in means:
        charted = chart.advance(charted, mean)
        if charted.state == "drift":
            lengths.append(charted.blocks)
            charted = chart.start()
    expected = Passages(drift, it, 8000, seed=9).run_length(drift.drift.width)
    assert np.mean(lengths) == pytest.approx(expected, rel=0.3)


def test_a_chart_is_learned_from_all_that_was_held_out(tmp_path: Path) -> None:
    bundle = made_of(write_tiny_bundle(tmp_path, "tiny"), sentences(100_000), tmp_path)
    files = {"vocabulary.json": (bundle.path / "vocabulary.json").read_bytes()}
    data = calibration(bundle.manifest, files)
    assert isinstance(data, Calibration)
    assert [len(each) for each in data.sequences] == [5000, 5000]
    drift = calibrate(bundle.graph, bundle.manifest, data)
    assert isinstance(drift, DriftCalibration)
    values = surprises(bundle.graph, bundle.manifest, data.sequences)
    means = np.concatenate([each[64 : len(each) // 64 * 64].reshape(-1, 64).mean(axis=1) for each in values])
    assert (drift.block, drift.blocks) == (64, len(means))
    assert drift.mean == pytest.approx(float(means.mean()), rel=1e-6)
    assert drift.spread == pytest.approx(float(means.std()), rel=1e-6)
    assert 0 < drift.warning.width < drift.drift.width


@pytest.mark.parametrize(("steps", "block"), [(200 * 64, 64), (200 * 32 - 1, 32), (150 * 8, 8)])
def test_blocks_are_shorter_where_there_is_little_data(steps: int, block: int) -> None:
    found = learn([np.random.default_rng(0).random(steps).astype(np.float32)], 128)
    assert isinstance(found, Learned)
    assert found.block == block
    assert len(found.means) >= 100


def test_too_little_data_is_said() -> None:
    assert learn([np.zeros(500, np.float32)], 128) == "500 held-out steps are too few"


def test_why_there_is_no_chart_is_said(tmp_path: Path) -> None:
    text = read_bundle(write_tiny_bundle(tmp_path))
    files = {"vocabulary.json": (text.path / "vocabulary.json").read_bytes()}
    assert calibration(text.manifest, files) == "the bundle does not say what it was trained on"
    stream = read_bundle(write_tiny_stream_bundle(tmp_path))
    assert calibration(stream.manifest, {}) == "the model does not predict its own next input"
    gone = made_of(text.path, "a" * 9000, tmp_path)
    assert calibration(gone.manifest, files) == "the data's characters are not those of the bundle"
    (tmp_path / "text.txt").unlink()
    found = calibration(gone.manifest, files)
    assert isinstance(found, str)
    assert found.startswith("the training's data is not at hand: no such file")
    forecast = read_bundle(write_tiny_forecast_bundle(tmp_path))
    (tmp_path / "text.txt").write_text(sentences(9000), "utf-8")
    other = change_bundle(forecast.path, "2", provenance=gone.manifest.provenance)
    assert calibration(other.manifest, {}) == "the data is for the task next_token"


def test_export_gives_a_bundle_its_chart_and_its_card_tells(tmp_path: Path) -> None:
    bundle = made_of(write_tiny_bundle(tmp_path, "tiny"), sentences(60_000), tmp_path)
    card = "# tiny, version 7\n\n## Surprise, where all is well\n\n- old\n\n## Call\n\nso\n"
    (bundle.path / "card.md").write_text(card)
    manifest = (bundle.path / "manifest.json").read_text()
    before = bundle.manifest.files["card.md"]
    (bundle.path / "manifest.json").write_text(manifest.replace(before, hashlib.sha256(card.encode()).hexdigest()))
    result = CliRunner().invoke(
        app, [str(bundle.path), "--out", str(tmp_path / "out"), "--name", "tide", "--version", "3"]
    )
    assert result.exit_code == 0, result.output
    found = read_bundle(tmp_path / "out" / "tide" / "3")
    assert found.manifest.drift is not None
    assert f"surprise where all is well: {found.manifest.drift.mean:.3f}" in result.stdout
    assert found.graph == bundle.graph
    told = (found.path / "card.md").read_text()
    assert told.startswith("# tide, version 3\n\n## Surprise, where all is well\n\n- Where all is well: ")
    assert "old" not in told
    assert told.endswith("\n\n## Call\n\nso\n")


def test_a_bundle_that_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    result = CliRunner().invoke(app, [str(bundle), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{bundle} cannot be calibrated: the bundle does not say")
    assert not (tmp_path / "out").exists()


def test_the_ready_made_bundles_are_calibrated() -> None:
    for name, unit in (("shakespeare-lstm", 1.0), ("shakespeare-gru", 1.0), ("load-lstm", 0.2)):
        manifest = read_bundle(Path(__file__).parents[2] / "bundles" / name / "1").manifest
        assert manifest.drift is not None, name
        assert manifest.drift.drift.run_length > 800
        assert unit < manifest.drift.mean < 3 * unit


def test_limits_must_be_sound() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Limit(width=0, run_length=10)
