"""Imports a case as its owner would, first with nothing said, then with the truth; streams what was accepted."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from tests.export.importing.importing import said
from tests.search.oracle import Oracle
from tests.search.oracle import Sequence as Row
from tests.search.truth import Array, Case
from tests.service.serving import serving
from tidegate.api import Input, SessionRequest, StepOptions
from tidegate.bundle import TIME, Bundle, Manifest, read_bundle
from tidegate_export.importing.importer import run

ABSOLUTE, RELATIVE = 2e-4, 1e-3
"""Long sequences through other kernels drift apart in the last bits; what is wrong is wrong by far more."""


class Outcome(StrEnum):
    ACCEPTED = "accepted, right"
    ASKED = "asked, then accepted, right"
    REFUSED = "refused, right"
    MISLEADING = "refused, the reason misleads"
    WRONGLY = "refused, though it can stream"
    WRONG = "ACCEPTED, SILENTLY WRONG"
    CRASH = "CRASHED"


GOOD = {Outcome.ACCEPTED, Outcome.ASKED, Outcome.REFUSED}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a case: the outcome, what was said, and what was answered last."""

    outcome: Outcome
    told: str
    options: Mapping[str, Any]
    first: str = ""
    """What was answered with nothing said."""


def judge(case: Case, root: Path | None = None) -> Verdict:
    """Return what becomes of a case."""
    folder = Path(tempfile.mkdtemp(prefix="tidegate-search-")) if root is None else root
    try:
        return _judged(case, folder)
    finally:
        if root is None:
            shutil.rmtree(folder, ignore_errors=True)


def _judged(case: Case, folder: Path) -> Verdict:
    file = folder / "case.onnx"
    file.write_bytes(case.model.SerializeToString())
    first, answer = "", ""
    options: Mapping[str, Any] = {}
    for number, options in enumerate(_stages(case)):
        shutil.rmtree(folder / "bundles", ignore_errors=True)
        try:
            answer, is_done = run(said(file, folder, **options))
        except Exception:  # noqa: BLE001 - any at all is a crash
            return Verdict(Outcome.CRASH, traceback.format_exc(), options, first)
        if is_done:
            bundle = read_bundle(Path(answer.partition(": ")[0]))
            return _compared(case, bundle, options, first, asked=number > 0)
        if "\n" in answer or "Traceback" in answer or len(answer) > 1500:
            return Verdict(Outcome.CRASH, answer, options, first)
        first = first or answer
        if case.trap is not None and number == 0 and re.search(case.trap.reason, answer):
            return Verdict(Outcome.REFUSED, answer, options)
    if case.trap is None:
        return Verdict(Outcome.WRONGLY, answer, options, first)
    is_right = re.search(case.trap.reason, answer) is not None
    return Verdict(Outcome.REFUSED if is_right else Outcome.MISLEADING, answer, options, first)


def _stages(case: Case) -> Sequence[Mapping[str, Any]]:
    """Return what is said: nothing, the roles, the roles and axes, and how far the graph remembers."""
    # What the graph wants again, only its owner knows: it is said at once.
    contexts = {"contexts": [f"{item.name}={item.context}@{item.along}" for item in case.data if item.context]}
    roles = {
        **contexts,
        "states": [f"{state.input}:{state.output}" for state in case.states],
        "data": [item.name for item in case.data],
        "constants": [f"{name}={value}" for name, value in case.constants.items()],
    }
    axes = {
        "shapes": [f"{item.name}={','.join(map(str, item.sent))}" for item in case.data],
        "batch_axes": [] if case.has_batch else ["none"],
        "time_axes": ["none"] if case.is_frame else [],
        "is_within_frame": case.is_within_frame,
    }
    stages: list[Mapping[str, Any]] = [contexts, roles, {**roles, **axes}]
    if case.trap is None:
        stages.append({**roles, **axes, "reach": case.reach + 8})
    return stages


def _compared(case: Case, bundle: Bundle, options: Mapping[str, Any], first: str, *, asked: bool) -> Verdict:
    try:
        wrong = compare(case, bundle)
    except Exception:  # noqa: BLE001 - a bundle that was accepted must be served
        return Verdict(Outcome.CRASH, traceback.format_exc(), options, first)
    if wrong is not None:
        return Verdict(Outcome.WRONG, wrong, options, first)
    if not asked:
        return Verdict(Outcome.ACCEPTED, "", options)
    if "--" not in first:
        return Verdict(Outcome.MISLEADING, f"accepted with flags that it did not name: {first}", options, first)
    return Verdict(Outcome.ASKED, "", options, first)


def compare(case: Case, bundle: Bundle) -> str | None:
    """Stream sequences through a service over the bundle; return what differs from the oracle, None where nothing."""
    manifest = bundle.manifest
    if case.trap is not None and case.trap.is_random:
        return "it is random"
    if wrong := _roles(case, manifest):
        return wrong
    oracle = Oracle(case)
    steps = case.num_steps
    rows = [oracle.sequence(seed, steps if seed == 0 else 40) for seed in range(3)]
    for name in {spec.name for spec in manifest.inputs} & set(case.constants):
        for seed, row in enumerate(rows):
            row.inputs[name] = np.full((steps if seed == 0 else 40, 1), float(case.constants[name]))
    told = asyncio.run(streamed(bundle, rows, case.seed))
    for number, (row, outputs) in enumerate(zip(rows, told, strict=True)):
        for name, wanted in row.outputs.items():
            if wrong := differs(wanted, outputs[name], case.slack):
                return f"{name} of sequence {number}: {wrong}"
    return None


def _roles(case: Case, manifest: Manifest) -> str | None:
    found, wanted = {spec.name for spec in manifest.inputs}, {item.name for item in case.data}
    # A setting may become an input that comes with every step.
    if found - set(case.constants) != wanted:
        return f"data is {sorted(wanted)}, the bundle takes {sorted(found)}"
    if missing := set(case.outputs) - {spec.name for spec in manifest.outputs}:
        return f"no output {sorted(missing)}"
    by_name = {item.name: item for item in case.data}
    for spec in manifest.inputs:
        if spec.name in case.constants:
            continue
        sizes = [axis for axis in spec.axes if isinstance(axis, int)]
        if np.prod(sizes) != np.prod(by_name[spec.name].step_shape) or TIME not in spec.axes:
            return f"{spec.name} has the axes {list(spec.axes)}, right is {list(by_name[spec.name].axes)}"
    return None


async def streamed(bundle: Bundle, rows: Sequence[Row], seed: int) -> list[dict[str, Array]]:
    """Step sessions side by side in random chunks; return each one's outputs, [steps, numbers]."""
    rng = np.random.default_rng(seed)
    inputs = [_input(bundle.manifest, row) for row in rows]
    ends = [len(next(iter(row.inputs.values()))) for row in rows]
    positions = [0] * len(rows)
    pieces: list[list[dict[str, Array]]] = [[] for _ in rows]
    async with serving(bundle.path.parents[1]) as service:
        sessions = [await service.open_session(SessionRequest(bundle.manifest.name)) for _ in rows]
        while live := [place for place, end in enumerate(ends) if positions[place] < end]:
            lengths = [_length(rng, positions[place], ends[place]) for place in live]
            replies = await asyncio.gather(
                *(
                    service.step(
                        sessions[place].id,
                        inputs[place].part(positions[place], positions[place] + length),
                        StepOptions(every_step=True),
                        position=positions[place],
                    )
                    for place, length in zip(live, lengths, strict=True)
                )
            )
            for place, length, reply in zip(live, lengths, replies, strict=True):
                outputs = reply.prediction.outputs or {}
                pieces[place].append({name: array.reshape(len(array), -1) for name, array in outputs.items()})
                positions[place] += length
        for session in sessions:
            await service.close_session(session.id)
    return [{name: np.concatenate([piece[name] for piece in parts]) for name in parts[0]} for parts in pieces]


def _length(rng: np.random.Generator, position: int, end: int) -> int:
    """Return a chunk's length: single steps at first, then of every size."""
    if position < 24:
        return 1
    return int(min(end - position, max(1, round(2 ** rng.uniform(0, 8)))))


def _input(manifest: Manifest, row: Row) -> Input:
    first = manifest.inputs[0]
    columns = [row.inputs[spec.name].reshape(len(row.inputs[spec.name]), -1) for spec in manifest.inputs]
    if len(columns) == 1 and columns[0].shape[1] == 1 and first.dtype.startswith("int"):
        return Input(tokens=[int(value) for value in columns[0][:, 0].tolist()])
    return Input(values=np.concatenate([part.astype(np.float32) for part in columns], axis=1))


def differs(wanted: Array, found: Array, slack: float) -> str | None:
    if wanted.shape != found.shape:
        return f"{list(found.shape)} numbers, right are {list(wanted.shape)}"
    x, y = wanted.astype(np.float64), found.astype(np.float64)
    error = np.abs(x - y) - RELATIVE * np.abs(x)
    worst = float(np.nan_to_num(error, nan=np.inf).max(initial=0.0))
    if worst <= ABSOLUTE + slack:
        return None
    step = int(np.argmax(error.reshape(len(error), -1).max(axis=1) > ABSOLUTE + slack))
    return f"differs by {worst:.3g}, from step {step} of {len(x)} on"
