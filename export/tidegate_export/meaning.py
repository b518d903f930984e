"""What a caller of `import` and `export` may say for people: sample rate, frame, units, what tensors mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import typer
from pydantic import ValidationError

from tidegate.bundle import Manifest, Meaning
from tidegate.errors import known_names
from tidegate_export.errors import ExportError

SampleRate = Annotated[
    float | None, typer.Option(min=0.001, metavar="HZ", help="Samples a second of the signal, like 16000.")
]
FrameLength = Annotated[int | None, typer.Option(min=1, metavar="N", help="Samples of the signal in one step.")]
Units = Annotated[
    list[str], typer.Option(metavar="NAME=UNIT", help="Unit of an input, output or feature, like y=dB; repeatable.")
]
Descriptions = Annotated[
    list[str],
    typer.Option(metavar="NAME=TEXT", help="Meaning of an input, output or feature, in words; repeatable."),
]


class MeaningWords(TypedDict):
    """The options as they were typed."""

    sample_rate: float | None
    frame_length: int | None
    units: list[str]
    descriptions: list[str]


@dataclass(frozen=True, slots=True)
class SaidMeaning:
    """What was said of the signal and of each tensor or feature."""

    sample_rate: float | None = None
    frame_length: int | None = None
    units: tuple[tuple[str, str], ...] = ()
    descriptions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, said: MeaningWords) -> SaidMeaning:
        """Return what was typed.

        Raises:
            ExportError: An item has no name or no value.
        """
        units, descriptions = _named("--unit", said["units"]), _named("--describe", said["descriptions"])
        return cls(said["sample_rate"], said["frame_length"], units, descriptions)

    def of_bundle(self, manifest: Manifest) -> Manifest:
        """Return the manifest with what was said.

        Raises:
            ExportError: It names no input, output or feature, or is too long.
        """
        found: dict[str, dict[str, str]] = {}
        known = [*(spec.name for spec in (*manifest.sources, *manifest.outputs)), *manifest.features]
        for option, field, items in (
            ("--unit", "unit", self.units),
            ("--describe", "description", self.descriptions),
        ):
            for name, text in items:
                if name not in known:
                    there = known_names(name, known, "there are")
                    raise ExportError(f"{option}: there is no input, output or feature {name!r}{there}")
                found.setdefault(name, {})[field] = text
        update: dict[str, Any] = {"sample_rate": self.sample_rate, "frame_length": self.frame_length}
        try:
            update["meanings"] = {name: Meaning(**fields) for name, fields in found.items()}
        except ValidationError as error:
            raise ExportError(f"--unit or --describe: {error.errors()[0]['msg']}") from error
        return manifest.model_copy(update={name: value for name, value in update.items() if value})


def described(manifest: Manifest) -> list[str]:
    """Return a sentence for each thing that a manifest says for people."""
    lines = []
    if manifest.sample_rate is not None:
        frame = "" if manifest.frame_length is None else f", {manifest.frame_length:,} a step"
        lines.append(f"signal: {manifest.sample_rate:g} samples a second{frame}")
    elif manifest.frame_length is not None:
        lines.append(f"signal: {manifest.frame_length:,} samples a step")
    for name, meaning in manifest.meanings.items():
        told = [meaning.description or "", f"[{meaning.unit}]" if meaning.unit else ""]
        lines.append(f"{name}: {' '.join(filter(None, told))}")
    return lines


def _named(option: str, items: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Parse `NAME=VALUE` items; a text may hold `=`, so the name ends at the first."""
    found: dict[str, str] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name or not value.strip():
            raise ExportError(f"{option} {item}: say NAME={'UNIT' if option == '--unit' else 'TEXT'}")
        if found.get(name, value) != value:
            raise ExportError(f"{option}: {name} is said twice, {found[name]!r} and {value!r}")
        found[name] = value.strip()
    return tuple(found.items())
