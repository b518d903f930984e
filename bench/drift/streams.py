"""Streams that change on the way: through a bundle's graph, as means of blocks of surprise.

Knows the data and what is done to it. Knows nothing of charts.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidegate.bundle import Bundle, DriftCalibration, ForecastCodec, Scaling, Standard, TokenCodec
from tidegate.drift import add_steps
from tidegate.replay import GraphRunner
from tidegate_export.held_out import calibration
from tidegate_models.recipe import Recipe
from tidegate_models.session import build_task
from tidegate_models.text import TextTask

STREAMS = 192
BEFORE, AFTER = 32, 96
"""Blocks of a stream before and after the change."""

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One change: the means of the blocks of each stream, [stream][block]; it comes after ``BEFORE`` blocks."""

    change: str
    drift: DriftCalibration
    streams: list[list[float]]


def run(bundle: Bundle, sequences: Values) -> Values:
    """Stream ``sequences`` [streams, steps, …] side by side; return their surprise, [streams, steps]."""
    codec = bundle.manifest.codec
    assert isinstance(codec, TokenCodec | ForecastCodec)
    assert codec.surprise is not None
    runner = GraphRunner(bundle.graph, bundle.manifest)
    name, states = bundle.manifest.inputs[0].name, runner.initial(len(sequences))
    found = []
    for start in range(0, sequences.shape[1], 64):
        result = runner.run({name: sequences[:, start : start + 64]}, states)
        states = result.states
        found.append(result.outputs[codec.surprise])
    return np.concatenate(found, axis=1)


def block_means(values: Values, drift: DriftCalibration) -> list[list[float]]:
    """The blocks' means of each stream, the first left out as the service does."""
    return [add_steps(0.0, 0, each.tolist(), drift.block)[1][1:] for each in values]


def excerpts(texts: Sequence[Values], steps: int, random: np.random.Generator) -> Iterator[Values]:
    """Excerpts from anywhere in the texts."""
    while True:
        text = texts[random.choice(len(texts), p=[len(each) / sum(map(len, texts)) for each in texts])]
        start = random.integers(len(text) - steps)
        yield text[start : start + steps]


def bible() -> str:
    """The King James Bible, as Debian's `bible` prints it."""
    program = shutil.which("bible")
    if program is None:
        sys.exit("the program bible is not here: apt-get install bible-kjv bible-kjv-text")
    asked = [program, "-l80", "Gen1:1-Rev22:21"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def text_cases(bundle: Bundle) -> list[Case]:
    """Shakespeare that goes on, and Shakespeare that becomes the Bible."""
    drift = drift_of(bundle)
    task = build_task(Recipe.model_validate(bundle.manifest.provenance["recipe"]))
    assert isinstance(task, TextTask)
    plays = [task.vocabulary.encode(text).numpy() for text in task.corpus.test.values()]
    known = set(task.vocabulary.characters)
    other = [task.vocabulary.encode("".join(each for each in bible() if each in known)).numpy()]
    random = np.random.default_rng(0)
    before, after = (BEFORE + 1) * drift.block, AFTER * drift.block
    plain, other_plain = excerpts(plays, before + after, random), excerpts(other, after, random)
    unchanged = np.stack([next(plain) for _ in range(STREAMS)])
    changed = np.stack([np.concatenate([each[:before], next(other_plain)]) for each in unchanged])
    cases = {"none": unchanged, "to the Bible": changed}
    return [Case(change, drift, block_means(run(bundle, streams), drift)) for change, streams in cases.items()]


def load_cases(bundle: Bundle) -> list[Case]:
    """A load that goes on, that is scaled, that is shifted in time, that stands still."""
    drift = drift_of(bundle)
    found = calibration(bundle.manifest, files_of(bundle))
    assert not isinstance(found, str)
    series = found.sequences[0]
    scaling = bundle.read("scaling.json", Scaling).features[0]
    assert isinstance(scaling, Standard)
    random = np.random.default_rng(0)
    length = (BEFORE + 1 + AFTER) * drift.block
    days = (len(series) - length) // drift.block
    starts = drift.block * random.choice(days, size=min(STREAMS, days), replace=False)
    streams = np.stack([series[start : start + length] for start in starts])
    changes: dict[str, Callable[[Values], Values]] = {
        "none": lambda load: load,
        "scaled by 1.1": lambda load: load * 1.1,
        "scaled by 1.25": lambda load: load * 1.25,
        "scaled by 0.8": lambda load: load * 0.8,
        "three hours late": lambda load: np.roll(load, 3, axis=1),
        "noise of 5 %": lambda load: load * (1 + 0.05 * random.standard_normal(load.shape)),
        "stuck at one value": lambda load: np.repeat(load[:, :1], load.shape[1], axis=1),
    }
    cases = []
    for change, apply in changes.items():
        altered, since = streams.copy(), (BEFORE + 1) * drift.block
        load = altered[:, since:, 0] * scaling.scale + scaling.mean
        altered[:, since:, 0] = (apply(load) - scaling.mean) / scaling.scale
        cases.append(Case(change, drift, block_means(run(bundle, altered), drift)))
    return cases


def drift_of(bundle: Bundle) -> DriftCalibration:
    assert bundle.manifest.drift is not None, f"{bundle.path} is not calibrated: tidegate export {bundle.path}"
    return bundle.manifest.drift


def files_of(bundle: Bundle) -> dict[str, bytes]:
    return {name: (bundle.path / name).read_bytes() for name in bundle.manifest.files}
