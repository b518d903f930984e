"""A training's folder: checkpoint for resuming, best network for exporting, recipe, metrics, report.

    runs/<name>/  recipe.toml  metrics.csv  loss.png  checkpoint.pt  best.pt  report.json

Knows the files and their formats. Every file appears whole or not at all.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from tidegate_models.errors import TrainingInputError
from tidegate_models.networks import RecurrentNetwork, quantile_network, token_network
from tidegate_models.task import Facts

NETWORKS: dict[str, Callable[..., RecurrentNetwork]] = {"next_token": token_network, "forecast": quantile_network}


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """The best network of a training, ready to run, with what is needed to use and to describe it."""

    name: str
    task: str
    network: RecurrentNetwork
    codec: Facts
    report: Facts | None
    """None while the training has not ended."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of metrics.csv; `loss` is the mean over the steps since the line before."""

    step: int
    epoch: int
    loss: float
    validation: float | None
    learning_rate: float
    seconds: float


class RunFolder:
    """Paths, reading and writing."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is created yet."""
        self.path = path

    @property
    def recipe(self) -> Path:
        """The recipe as it was resolved, with data file and number of steps."""
        return self.path / "recipe.toml"

    @property
    def best(self) -> Path:
        """The network with the best validation figure so far."""
        return self.path / "best.pt"

    @property
    def metrics(self) -> Path:
        """The loss curve in numbers."""
        return self.path / "metrics.csv"

    @property
    def plot(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def report(self) -> Path:
        """Final held-out figures with facts about data and training."""
        return self.path / "report.json"

    def checkpoint(self, rank: int) -> Path:
        """Everything that resuming needs; one file per process, because each carries its own streams' state."""
        return self.path / ("checkpoint.pt" if rank == 0 else f"checkpoint.rank{rank}.pt")

    def create(self, recipe: str) -> None:
        """Begin a run; a folder that already holds one is refused."""
        if self.recipe.exists():
            raise TrainingInputError(f"{self.path} already holds a run: add --resume, or choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_text(self.recipe, recipe)

    def write_text(self, path: Path, content: str) -> None:
        """Write a whole text file."""
        _replace(path, content.encode("utf-8"))

    def write_tensors(self, path: Path, content: dict[str, Any]) -> None:
        """Write a file for `torch.load(..., weights_only=True)`."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        _replace(path, buffer.getvalue())

    def write_metrics(self, rows: Sequence[Row]) -> None:
        """Write all lines so far."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
        self.write_text(self.metrics, text.getvalue())

    def write_report(self, report: Facts) -> None:
        """Write the report; its presence says that the training has ended."""
        self.write_text(self.report, json.dumps(report, indent=2) + "\n")

    def read_checkpoint(self, rank: int) -> dict[str, Any]:
        """Read this process's checkpoint."""
        path = self.checkpoint(rank)
        if not path.exists():
            raise TrainingInputError(f"nothing to resume: {path} does not exist")
        content: dict[str, Any] = torch.load(path, weights_only=True)
        return content


def load_run(path: str | Path) -> TrainedRun:
    """Load the best network of the run in the folder `path`, in evaluation mode on the CPU."""
    folder = RunFolder(Path(path))
    if not folder.best.exists():
        raise TrainingInputError(f"{path} holds no trained network (best.pt is missing)")
    best = torch.load(folder.best, weights_only=True, map_location="cpu")
    network = NETWORKS[best["task"]](**best["network"])
    network.load_state_dict(best["weights"])
    report = json.loads(folder.report.read_text("utf-8")) if folder.report.exists() else None
    return TrainedRun(best["name"], best["task"], network.eval(), best["codec"], report)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
