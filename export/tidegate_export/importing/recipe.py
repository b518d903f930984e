"""An import as a command that repeats it: for the manifest and the card."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_REPEATED = {
    "states": "--state",
    "data": "--data",
    "shapes": "--shape",
    "batch_axes": "--batch-axis",
    "time_axes": "--time-axis",
    "constants": "--constant",
    "settings": "--setting",
    "contexts": "--context",
}
_ONCE = {"initial": "--initial", "tolerance": "--tolerance", "reach": "--reach"}
_MEANING = {"sample_rate": "--sample-rate", "frame_length": "--frame-length"}
_MEANINGS = {"units": "--unit", "descriptions": "--describe"}


def command_of(said: Mapping[str, Any]) -> str:
    """Return the command line that says the same, files by their names alone; where the bundle goes is left out."""
    return shlex.join(["tidegate", "import", Path(said["file"]).name, *_words(said)])


def _words(said: Mapping[str, Any]) -> Iterator[str]:
    if said["name"] is not None:
        yield from ("--name", said["name"])
    meaning = said["meaning"]
    for values, repeated in ((said, _REPEATED), (meaning, _MEANINGS)):
        if values is meaning:
            yield from _single(said, _ONCE)
            if said["is_within_frame"]:
                yield "--within-frame"
            yield from _single(meaning, _MEANING)
        for key, option in repeated.items():
            for item in values[key]:
                yield from (option, item)


def _single(values: Mapping[str, Any], options: Mapping[str, str]) -> Iterator[str]:
    for key, option in options.items():
        value = values.get(key)
        if value is not None:
            yield from (option, Path(value).name if key == "initial" else f"{value:g}")
