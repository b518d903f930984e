"""The training loop: truncated back-propagation through time over parallel streams, with state carried across windows.

Knows steps, optimizer, checkpoints and figures; not what the data means (`task.Task`) nor who asked (`cli`).
A step is: take the next window of every stream, run it from the carried state, go back through this window only.

A run that is stopped and resumed gives the losses of one that was not, bit for bit on one CPU: the checkpoint holds
weights, optimizer, random state, carried state and the number of steps, which is also the place in the data.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tidegate_models.errors import TrainingInputError
from tidegate_models.networks import RecurrentNetwork, State, detach
from tidegate_models.plot import loss_curve
from tidegate_models.recipe import Recipe, TrainingSection
from tidegate_models.runs import NETWORKS, Row, RunFolder
from tidegate_models.task import Facts, Task
from tidegate_models.windows import Windows

_FINAL_RATE = 0.02  # of the peak: the last steps still move a little
_CALIBRATION_STEPS = 20


@dataclass
class Progression:
    """All that changes while training, apart from the network and its optimizer."""

    step: int = 0
    state: State = ()
    losses: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    best: float = math.inf
    seconds: float = 0.0


def learning_rate(step: int, schedule: TrainingSection) -> float:
    """Linear warm-up, then a cosine from the peak down to 2 % of it at the last step (Loshchilov & Hutter 2017)."""
    if step < schedule.warmup:
        return schedule.learning_rate * (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return schedule.learning_rate * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


def build_optimizer(network: RecurrentNetwork, schedule: TrainingSection) -> torch.optim.AdamW:
    """AdamW; biases and other vectors are not decayed."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate)


class Trainer:
    """One training of one recipe in one process (of several under DDP: rank 0 evaluates, logs and keeps the best)."""

    def __init__(self, recipe: Recipe, task: Task, folder: RunFolder, fabric: Fabric, console: Console) -> None:
        """Seed, build the network, and share the streams among the processes."""
        fabric.seed_everything(recipe.seed, verbose=False)
        self.recipe, self.task, self.folder, self.fabric, self.console = recipe, task, folder, fabric, console
        self.network = NETWORKS[task.name](**task.network_arguments())
        self.model, self.optimizer = fabric.setup(self.network, build_optimizer(self.network, recipe.training))
        self.windows: Windows = task.windows.shard(fabric.global_rank, fabric.world_size)
        torch.manual_seed(recipe.seed + fabric.global_rank)  # equal weights, different dropout
        self.at = Progression()

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the recipe's last step and write the report; False when stopped early, leaving a checkpoint."""
        with self._progress() as advance:
            while self.at.step < self.recipe.training.steps:
                if self.fabric.broadcast(should_stop()):  # all processes stop at the same step
                    self.save_checkpoint()
                    return False
                started = time.monotonic()
                self._step()
                self._log_and_evaluate(started)
                advance()
        self._finish()
        return True

    def _step(self) -> None:
        """Consume one window of every stream and move the weights once."""
        batch = self.windows.at(self.at.step)
        inputs, targets = self.fabric.to_device((batch.inputs, batch.targets))
        if batch.is_first:
            self.at.state = self.network.initial_state(len(inputs), self.fabric.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.at.step, self.recipe.training)
        outputs, state = self.model(inputs, self.at.state)
        loss = self.task.loss(outputs, targets)
        if not math.isfinite(loss.item()):
            raise TrainingInputError(f"the loss is {loss.item()} at step {self.at.step}: lower learning_rate")
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        clip = self.recipe.training.clip
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.at.state = detach(state)
        self.at.losses.append(loss.item())
        self.at.step += 1

    def _log_and_evaluate(self, started: float) -> None:
        schedule, step = self.recipe.training, self.at.step
        is_last = step == schedule.steps
        evaluates = is_last or step % schedule.evaluate_every == 0
        validation = self._evaluate() if evaluates else None
        self.at.seconds += time.monotonic() - started
        if evaluates or step % schedule.log_every == 0:
            self._log(validation)
        if evaluates:
            self.save_checkpoint()

    def _evaluate(self) -> float:
        """Measure on the validation split and keep the network if it is the best so far."""
        validation = self.task.validate(self.network) if self.fabric.is_global_zero else math.inf
        if validation < self.at.best:
            self.at.best = validation
            self._save_best()
        return validation

    def _log(self, validation: float | None) -> None:
        since = self.at.rows[-1].step if self.at.rows else 0
        recent = self.at.losses[since:]
        epoch = (self.at.step - 1) // self.windows.windows_per_epoch
        rate = learning_rate(self.at.step - 1, self.recipe.training)
        mean = sum(recent) / len(recent)
        self.at.rows.append(Row(self.at.step, epoch, mean, validation, rate, round(self.at.seconds, 1)))
        if self.fabric.is_global_zero:
            self.folder.write_metrics(self.at.rows)
        if self.fabric.is_global_zero and validation is not None:
            speed = self.at.step / self.at.seconds
            self.console.print(
                f"step {self.at.step}: loss {mean:.4f}, validation {validation:.4f} {self.task.unit},"
                f" {self.at.seconds:.0f} s, {speed:.1f} steps/s",
                soft_wrap=True,
            )

    def _save_best(self) -> None:
        kept = self.task.calibrated(self.network)
        content = {
            "name": self.recipe.name,
            "task": self.task.name,
            "network": self.task.network_arguments(),
            "weights": {name: tensor.detach().cpu() for name, tensor in kept.state_dict().items()},
            "codec": self.task.codec,
        }
        self.folder.write_tensors(self.folder.best, content)

    def save_checkpoint(self) -> None:
        """Write what `resume` reads."""
        at = self.at
        random = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        content: dict[str, Any] = {
            "world_size": self.fabric.world_size,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random,
            "step": at.step,
            "state": list(at.state),
            "losses": at.losses,
            "rows": [(r.step, r.epoch, r.loss, r.validation, r.learning_rate, r.seconds) for r in at.rows],
            "best": at.best,
            "seconds": at.seconds,
        }
        self.folder.write_tensors(self.folder.checkpoint(self.fabric.global_rank), content)

    def resume(self) -> None:
        """Continue where `save_checkpoint` left off."""
        saved = self.folder.read_checkpoint(self.fabric.global_rank)
        if saved["world_size"] != self.fabric.world_size:
            raise TrainingInputError(f"this run was trained on {saved['world_size']} devices: resume it on as many")
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"]["cpu"])
        if "cuda" in saved["random"]:
            torch.cuda.set_rng_state(saved["random"]["cuda"], self.fabric.device)
        self.at = Progression(
            step=saved["step"],
            state=tuple(self.fabric.to_device(part) for part in saved["state"]),
            losses=saved["losses"],
            rows=[Row(*row) for row in saved["rows"]],
            best=saved["best"],
            seconds=saved["seconds"],
        )

    def _finish(self) -> None:
        """Score the best network on the held-out splits; write report and picture."""
        if not self.fabric.is_global_zero:
            return
        best = torch.load(self.folder.best, weights_only=True)
        kept = copy.deepcopy(self.network)
        kept.load_state_dict(best["weights"])
        report = {
            "name": self.recipe.name,
            "task": self.task.name,
            "held_out": self.task.figures(kept),
            "data": self.task.data_facts,
            "training": self._training_facts(),
        }
        loss_curve(self.at.rows, self.folder.plot, title=self.recipe.name, unit=self.task.unit)
        self.folder.write_report(report)

    def _training_facts(self) -> Facts:
        schedule = self.recipe.training
        best = min((row for row in self.at.rows if row.validation is not None), key=lambda row: row.validation or 0.0)
        return {
            "steps": self.at.step,
            "best_step": best.step,
            "epochs": round(self.at.step / self.windows.windows_per_epoch, 2),
            "elements": self.at.step * schedule.streams * schedule.window,
            "seconds": round(self.at.seconds),
            "devices": self.fabric.world_size,
            "device": self.fabric.device.type,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "seed": self.recipe.seed,
            "network": self.recipe.network.model_dump(),
            "tidegate": metadata.version("tidegate"),
            "torch": torch.__version__,
        }

    @contextmanager
    def _progress(self) -> Iterator[Callable[[], None]]:
        """A bar on rank 0's terminal; yields what advances it by one step."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not (self.fabric.is_global_zero and self.console.is_terminal)
        with Progress(*columns, console=self.console, disable=hidden) as progress:
            bar = progress.add_task(self.recipe.name, total=self.recipe.training.steps, completed=self.at.step)
            yield lambda: progress.update(bar, completed=self.at.step, description=f"loss {self.at.losses[-1]:.3f}")


def steps_in(minutes: float, recipe: Recipe, task: Task, device: torch.device) -> int:
    """How many steps fit: times some steps of a throwaway network, and leaves a tenth for evaluations."""
    torch.manual_seed(recipe.seed)
    network = NETWORKS[task.name](**task.network_arguments()).to(device)
    optimizer = build_optimizer(network, recipe.training)
    for step in range(_CALIBRATION_STEPS + 2):
        if step == 2:  # the first steps are slower than the rest
            started = time.monotonic()
        batch = task.windows.at(step)
        outputs, _ = network(batch.inputs.to(device), network.initial_state(len(batch.inputs), device))
        loss = task.loss(outputs, batch.targets.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        loss.item()  # waits for a device that works ahead
    each = (time.monotonic() - started) / _CALIBRATION_STEPS
    return max(1, int(minutes * 60 * 0.9 / each))


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question that the loop asks between steps."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
