"""From a command to a training: the recipe resolved against options, the task built, the folder prepared.

Knows how the pieces are put together; each piece is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric
from rich.console import Console

from tidegate_models.errors import TrainingInputError
from tidegate_models.forecast import ForecastTask
from tidegate_models.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from tidegate_models.runs import RunFolder
from tidegate_models.series import csv_file, electricity
from tidegate_models.task import Task
from tidegate_models.text import TextTask, shakespeare, text_file
from tidegate_models.training import Trainer, steps_in, stop_on_signal


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the command line asked for."""

    recipe: str
    data: Path | None = None
    target: str | None = None
    time: str | None = None
    out: Path | None = None
    resume: bool = False
    minutes: float | None = None
    device: str = "auto"
    devices: int = 1


def run(request: TrainRequest) -> bool:
    """Train; False when it was interrupted and can be resumed."""
    console = Console(stderr=True)
    fabric = _fabric(request)
    folder = RunFolder(request.out or Path("runs") / load_recipe(request.recipe).name)
    recipe = _recorded(folder) if request.resume else resolve(request)
    task = build_task(recipe)
    if request.minutes is not None and not request.resume:
        steps = steps_in(request.minutes, recipe, task, fabric.device)
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": steps})})
    if fabric.is_global_zero and not request.resume:
        folder.create(dump_recipe(recipe))
    fabric.launch()
    recipe = fabric.broadcast(recipe)  # every process times its own steps: rank 0 decides
    trainer = Trainer(recipe, task, folder, fabric, console)
    if request.resume:
        trainer.resume()
    with stop_on_signal() as should_stop:
        is_complete = trainer.run(should_stop)
    if fabric.is_global_zero:
        ending = "done" if is_complete else "interrupted, continue with --resume"
        console.print(f"{folder.path}: {ending}", soft_wrap=True)
    return is_complete


def resolve(request: TrainRequest) -> Recipe:
    """The recipe with the data that the options name."""
    recipe = load_recipe(request.recipe)
    data = recipe.data.model_copy(
        update={"target": request.target or recipe.data.target, "time": request.time or recipe.data.time}
    )
    if request.data is not None:
        data = data.model_copy(update={"file": request.data.absolute(), "source": None})
    if data.source is None and data.file is None:
        raise TrainingInputError(f"recipe {recipe.name} brings no data: add --data FILE")
    return recipe.model_copy(update={"data": data})


def build_task(recipe: Recipe) -> Task:
    """Load the data and make the task of it."""
    data = recipe.data
    if recipe.task == "next_token":
        return TextTask(recipe, text_file(data.file) if data.file else shakespeare())
    series = csv_file(data.file, target=data.target, time=data.time) if data.file else electricity()
    return ForecastTask(recipe, series)


def _recorded(folder: RunFolder) -> Recipe:
    if not folder.recipe.exists():
        raise TrainingInputError(f"nothing to resume: {folder.path} holds no run")
    return parse_recipe(folder.recipe.read_text("utf-8"), str(folder.recipe))


def _fabric(request: TrainRequest) -> Fabric:
    """Raises TrainingInputError for a device that is not there."""
    try:
        strategy = "ddp" if request.devices > 1 else "auto"
        return Fabric(accelerator=request.device, devices=request.devices, strategy=strategy)
    except (ValueError, RuntimeError) as error:
        raise TrainingInputError(f"device {request.device!r} cannot be used: {str(error).splitlines()[0]}") from error
