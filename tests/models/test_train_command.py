"""`tidegate train` from the command line: a user's own files, and one line for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tidegate_models.cli import train
from tidegate_models.recipe import dump_recipe, load_recipe
from tidegate_models.runs import load_run

HOURS = "\n".join(f"2024-01-{1 + d:02} {h:02}:00,{50 + h + d * d % 7}" for d in range(28) for h in range(24))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Result:
    app = typer.Typer(add_completion=False)
    app.command()(train)
    return CliRunner().invoke(app, [*arguments, "--device", "cpu"])


def tiny(name: str) -> str:
    recipe = load_recipe(name)
    network = recipe.network.model_copy(update={"hidden_size": 8, "embedding_size": 4})
    training = recipe.training.model_copy(update={"steps": 6, "evaluate_every": 3, "streams": 2, "window": 16})
    forecast = recipe.forecast.model_copy(update={"horizon": 4, "season": 24})
    Path("tiny.toml").write_text(
        dump_recipe(recipe.model_copy(update={"network": network, "training": training, "forecast": forecast})), "utf-8"
    )
    return "./tiny.toml"


def test_text_of_ones_own() -> None:
    Path("my.txt").write_text("to be, or not to be. " * 100, "utf-8")
    result = call(tiny("text"), "--data", "my.txt", "--out", "runs/mine")
    assert result.exit_code == 0, result.output
    assert "runs/mine: done" in result.stderr
    run = load_run("runs/mine")
    assert run.codec["characters"] == sorted(set("to be, or not to be. "))


def test_a_series_of_ones_own() -> None:
    Path("my.csv").write_text("when,demand\n" + HOURS, "utf-8")
    result = call(tiny("forecast"), "--data", "my.csv", "--target", "demand", "--time", "when")
    assert result.exit_code == 0, result.output
    run = load_run("runs/forecast")
    assert [feature["name"] for feature in run.codec["features"]] == ["demand", "hour", "weekday", "yearday"]
    assert run.report is not None
    assert set(run.report["held_out"]["test"]) >= {"mase", "mase_seasonal_naive", "mase_ewma", "coverage_80"}


def test_a_finished_run_can_be_resumed_to_no_effect() -> None:
    Path("my.txt").write_text("to be, or not to be. " * 100, "utf-8")
    assert call(tiny("text"), "--data", "my.txt").exit_code == 0
    before = Path("runs/text/metrics.csv").read_bytes()
    assert call(tiny("text"), "--resume").exit_code == 0
    assert Path("runs/text/metrics.csv").read_bytes() == before


def test_minutes_set_the_steps() -> None:
    Path("my.txt").write_text("to be, or not to be. " * 100, "utf-8")
    assert call(tiny("text"), "--data", "my.txt", "--minutes", "0.01").exit_code == 0
    assert "steps = 6\n" not in Path("runs/text/recipe.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text"], "recipe text brings no data: add --data FILE"),
        (["text", "--data", "none.txt"], "no such file"),
        (
            ["forecast", "--data", "my.csv", "--target", "lod", "--time", "when"],
            "no column 'lod': did you mean 'load'? There are when, load",
        ),
        (["forecast", "--data", "my.csv", "--time", "when"], "gap after 2024-01-01 00:00:00"),
        (["novel"], "no recipe 'novel'"),
        (["text", "--data", "my.txt", "--resume"], "nothing to resume: runs/text holds no run"),
        (["text", "--data", "my.txt"], "too little data: my.txt has 2 characters"),
        (["text", "--data", "my.txt", "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_a_mistake_costs_one_line_and_status_2(arguments: list[str], message: str) -> None:
    Path("my.csv").write_text("when,load\n2024-01-01 00:00,1\n2024-01-01 02:00,2\n2024-01-01 03:00,3\n", "utf-8")
    Path("my.txt").write_text("hi", "utf-8")
    app = typer.Typer(add_completion=False)
    app.command()(train)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace(str(Path.cwd()) + "/", "")
    assert len(result.stderr.splitlines()) == 1


def test_without_torch_the_command_says_what_to_install() -> None:
    program = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
import typer
from tidegate_models.cli import train
assert "tidegate_models.training" not in sys.modules
typer.run(train)
"""
    done = subprocess.run([sys.executable, "-c", program, "text"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "torch is not installed: pip install 'tidegate[train]'\n"
