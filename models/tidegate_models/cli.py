"""`tidegate train`: the command line of the training.

Torch is imported only when the command runs, so that an installation without it can list the command.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tidegate_models.errors import TrainingInputError


def train(  # noqa: PLR0913, PLR0917 - one parameter per option
    recipe: Annotated[str, typer.Argument(help="Name of a packaged recipe, or path of a recipe's TOML file.")],
    data: Annotated[Path | None, typer.Option(help="Text or CSV file to use in place of the recipe's data.")] = None,
    target: Annotated[str | None, typer.Option(help="CSV column to forecast.")] = None,
    time: Annotated[str | None, typer.Option(help="CSV column with ISO 8601 timestamps.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder of --out.")] = False,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Train for about this many minutes.")] = None,
    device: Annotated[str, typer.Option(help="Device to train on: auto, cpu, cuda or mps.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Number of devices for data-parallel training (DDP).")] = 1,
) -> None:
    """Train a model from a recipe, on its data or on your own."""
    try:
        from tidegate_models.session import TrainRequest, run  # torch may be absent
    except ModuleNotFoundError as error:
        typer.echo(f"{error.name} is not installed: pip install 'tidegate[train]'", err=True)
        raise typer.Exit(2) from None
    request = TrainRequest(recipe, data, target, time, out, resume, minutes, device, devices)
    try:
        is_complete = run(request)
    except TrainingInputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if not is_complete:
        sys.exit(130)
