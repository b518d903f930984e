"""Exports a random module as its owner would, and compares what is served with PyTorch over whole sequences."""

from __future__ import annotations

import asyncio
import copy
import re
import shutil
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.search.judge import Outcome, Verdict, differs, streamed
from tests.search.modules import ModuleCase
from tests.search.oracle import Sequence
from tests.search.truth import Array
from tidegate.bundle import read_bundle
from tidegate.errors import BundleError
from tidegate_export.candidate import export_candidate
from tidegate_export.errors import ExportError
from tidegate_export.modules import Description, module_candidate
from tidegate_export.signature import InputShape


def judge_module(case: ModuleCase) -> Verdict:
    """Return what becomes of a module."""
    folder = Path(tempfile.mkdtemp(prefix="tidegate-search-"))
    try:
        about = Description("model", "1", InputShape.parse(case.shape))
        path = export_candidate(module_candidate(copy.deepcopy(case.module), about), folder).path
        wrong = _compared(case, path)
    except (ExportError, BundleError) as error:
        told = " ".join(str(error).split())
        if case.trap is None:
            return Verdict(Outcome.WRONGLY, told, {})
        is_right = re.search(case.trap.reason, told) is not None
        return Verdict(Outcome.REFUSED if is_right else Outcome.MISLEADING, told, {})
    except Exception:  # noqa: BLE001 - any at all is a crash
        return Verdict(Outcome.CRASH, traceback.format_exc(), {})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Verdict(Outcome.ACCEPTED if wrong is None else Outcome.WRONG, wrong or "", {})


def _compared(case: ModuleCase, path: Path) -> str | None:
    if case.trap is not None and case.trap.is_random:
        return "it is random"
    bundle = read_bundle(path)
    name = bundle.manifest.inputs[0].name
    rows = []
    for seed, steps in enumerate((max(60, 2 * case.reach + 37), 40, 40)):
        x = _random(case, np.random.default_rng(seed), steps)
        told = _whole(case.module, x)
        outputs = {spec.name: array for spec, array in zip(bundle.manifest.outputs, told, strict=True)}
        rows.append(Sequence({name: x}, outputs))
    for number, (row, found) in enumerate(zip(rows, asyncio.run(streamed(bundle, rows, case.seed)), strict=True)):
        for output, wanted in row.outputs.items():
            if wrong := differs(wanted, found[output], 0.0):
                return f"{output} of sequence {number}: {wrong}"
    return None


def _random(case: ModuleCase, rng: np.random.Generator, steps: int) -> Array:
    if case.num_tokens:
        return rng.integers(0, case.num_tokens, steps)
    values = rng.normal(size=(steps, case.width))
    return np.where(rng.random((steps, 1)) > 0.93, values * 5, values).astype(np.float32)


def _whole(module: nn.Module, x: Array) -> list[Array]:
    """Run PyTorch over one whole sequence; return every output as [steps, numbers]."""
    with torch.no_grad():
        told = module(torch.from_numpy(x[None]))
    outputs = told if isinstance(told, tuple) else (told,)
    return [np.asarray(output[0].numpy()) for output in outputs]
