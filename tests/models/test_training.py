"""The training loop: it learns, it resumes bit for bit, it leaves what the exporter reads."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console

from tidegate_models.errors import TrainingInputError
from tidegate_models.recipe import Recipe, dump_recipe, load_recipe
from tidegate_models.runs import RunFolder, load_run
from tidegate_models.text import TextTask, text_file
from tidegate_models.training import Trainer, learning_rate, steps_in, stop_on_signal

STEPS = 24


@pytest.fixture
def recipe() -> Recipe:
    base = load_recipe("text")
    network = base.network.model_copy(update={"hidden_size": 16, "embedding_size": 8, "dropout": 0.2})
    sizes = {"steps": STEPS, "streams": 4, "window": 16, "evaluate_every": 8, "log_every": 4, "warmup": 4}
    training = base.training.model_copy(update={**sizes, "learning_rate": 0.02})
    return base.model_copy(update={"network": network, "training": training})


@pytest.fixture
def task(recipe: Recipe, tmp_path: Path) -> TextTask:
    path = tmp_path / "t.txt"
    path.write_text("the tide turns at the gate. " * 150, "utf-8")
    return TextTask(recipe, text_file(path))


def trainer(recipe: Recipe, task: TextTask, path: Path) -> Trainer:
    folder = RunFolder(path)
    folder.path.mkdir(exist_ok=True)
    fabric = Fabric(accelerator="cpu", devices=1)
    return Trainer(recipe, task, folder, fabric, Console(file=io.StringIO()))


def stop_after(steps: int) -> Callable[[], bool]:
    asked = iter([False] * steps)
    return lambda: next(asked, True)


def test_training_learns(recipe: Recipe, task: TextTask, tmp_path: Path) -> None:
    one = trainer(recipe, task, tmp_path / "run")
    assert one.run()
    assert one.at.losses[-1] < one.at.losses[0] - 0.3
    assert one.at.best < task.validate(trainer(recipe, task, tmp_path / "other").network)


@pytest.mark.parametrize("at", [0, 1, 7, 8, 13, STEPS])
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(
    at: int, recipe: Recipe, task: TextTask, tmp_path: Path
) -> None:
    whole = trainer(recipe, task, tmp_path / "whole")
    assert whole.run()
    first = trainer(recipe, task, tmp_path / "parts")
    assert first.run(stop_after(at)) == (at == STEPS)
    torch.manual_seed(99)  # what another process would have
    second = trainer(recipe, task, tmp_path / "parts")
    second.resume()
    assert second.at.step == at
    assert second.run()
    assert second.at.losses == whole.at.losses
    for name, weights in whole.network.state_dict().items():
        assert torch.equal(weights, second.network.state_dict()[name]), name
    curves = [[(row.step, row.loss, row.validation) for row in each.at.rows] for each in (whole, second)]
    assert curves[0] == curves[1]


def test_equal_seeds_give_equal_losses_and_others_do_not(recipe: Recipe, task: TextTask, tmp_path: Path) -> None:
    losses = []
    for index, seed in enumerate((5, 5, 6)):
        one = trainer(recipe.model_copy(update={"seed": seed}), task, tmp_path / str(index))
        one.run(stop_after(5))
        losses.append(one.at.losses)
    assert losses[0] == losses[1] != losses[2]


def test_the_state_is_carried_across_windows(recipe: Recipe, task: TextTask, tmp_path: Path) -> None:
    one = trainer(recipe, task, tmp_path / "run")
    one.run(stop_after(1))
    assert one.at.state[0].any()
    assert not one.at.state[0].requires_grad


def test_what_a_run_leaves_behind(recipe: Recipe, task: TextTask, tmp_path: Path) -> None:
    one = trainer(recipe, task, tmp_path / "run")
    one.run()
    folder = one.folder
    rows = list(csv.DictReader(folder.metrics.read_text("utf-8").splitlines()))
    assert [int(row["step"]) for row in rows] == [4, 8, 12, 16, 20, 24]
    assert [bool(row["validation"]) for row in rows] == [False, True] * 3
    assert folder.plot.read_bytes().startswith(b"\x89PNG")
    report = json.loads(folder.report.read_text("utf-8"))
    assert report["training"]["steps"] == STEPS
    assert report["training"]["elements"] == STEPS * 4 * 16
    assert report["data"]["source"] == "t.txt"
    assert report["held_out"]["validation"]["bits_per_character"] == pytest.approx(one.at.best)
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "best.pt", "checkpoint.pt", "loss.png", "metrics.csv", "report.json",
    ]  # fmt: skip


def test_a_loaded_run_predicts_as_the_trained_network_did(recipe: Recipe, task: TextTask, tmp_path: Path) -> None:
    one = trainer(recipe, task, tmp_path / "run")
    one.run()
    run = load_run(tmp_path / "run")
    assert (run.name, run.task, run.codec) == ("text", "next_token", task.codec)
    assert not run.network.training
    assert task.validate(run.network) == one.at.best
    assert run.report is not None


def test_a_run_that_is_still_training_can_be_loaded(recipe: Recipe, task: TextTask, tmp_path: Path) -> None:
    trainer(recipe, task, tmp_path / "run").run(stop_after(9))
    assert load_run(tmp_path / "run").report is None


def test_a_folder_without_a_run_cannot_be_loaded_or_resumed(recipe: Recipe, task: TextTask, tmp_path: Path) -> None:
    with pytest.raises(TrainingInputError, match=r"best\.pt is missing"):
        load_run(tmp_path)
    with pytest.raises(TrainingInputError, match="nothing to resume"):
        trainer(recipe, task, tmp_path / "run").resume()


def test_a_run_is_not_overwritten(recipe: Recipe, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(dump_recipe(recipe))
    with pytest.raises(TrainingInputError, match="already holds a run: add --resume"):
        folder.create(dump_recipe(recipe))


def test_a_run_that_diverges_is_stopped_with_advice(recipe: Recipe, task: TextTask, tmp_path: Path) -> None:
    wild = recipe.training.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingInputError, match=r"the loss is (nan|inf) at step \d+: lower learning_rate"):
        trainer(recipe.model_copy(update={"training": wild}), task, tmp_path / "run").run()


def test_the_rate_warms_up_and_falls_to_a_fiftieth(recipe: Recipe) -> None:
    schedule = recipe.training
    rates = [learning_rate(step, schedule) for step in range(STEPS + 1)]
    assert rates[:4] == pytest.approx([0.005, 0.01, 0.015, 0.02])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[STEPS] == pytest.approx(0.0004)


def test_minutes_become_steps_in_proportion(recipe: Recipe, task: TextTask) -> None:
    few, many = (steps_in(minutes, recipe, task, torch.device("cpu")) for minutes in (0.001, 10))
    assert 1 <= few < many


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_question_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
    assert signal.getsignal(number) is before
