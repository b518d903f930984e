"""`tidegate import`: an ONNX file that carries its state in tensors becomes a bundle.

Knows the command line. Imports onnx only when called, so that a serving-only installation can list the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate.sandbox import MEMORY_MB, SECONDS, ResourceLimits
from tidegate_export.cli import MemoryLimit, require, run_verb

Many = list[str]
ImportTimeLimit = Annotated[float, typer.Option("--time-limit", "--seconds", min=1, help="Seconds that it may take.")]


def import_(  # noqa: PLR0913, PLR0917 - the command line's options
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The model.")],
    state: Annotated[
        Many, typer.Option(metavar="IN:OUT", help="A state: the input, and the output it comes out of. Repeatable.")
    ] = [],  # noqa: B006 - typer's way; nobody writes to it
    shape: Annotated[
        Many,
        typer.Option(metavar="NAME=AXES", help="Axes of an input as callers send it: x=batch,time,80 or x=batch,512."),
    ] = [],  # noqa: B006
    batch_axis: Annotated[
        Many, typer.Option(metavar="N", help="The batch axis, from 0, or none; NAME=N for one input.")
    ] = [],  # noqa: B006
    time_axis: Annotated[
        Many,
        typer.Option(metavar="N", help="The time axis, from 0, or none: one run is one step. NAME=N for one input."),
    ] = [],  # noqa: B006
    constant: Annotated[
        Many, typer.Option(metavar="NAME=VALUE", help="An input that is always this: sr=16000. Repeatable.")
    ] = [],  # noqa: B006
    context: Annotated[
        Many,
        typer.Option(metavar="NAME=N", help="The graph wants the last N elements of this input again (4@time: steps)."),
    ] = [],  # noqa: B006
    initial: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="First states by input name (default: zeros).")
    ] = None,
    within_frame: Annotated[
        bool, typer.Option("--within-frame", help="Layers without state run across each frame, not along time.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(min=1e-5, max=1.0, help="What counts as equal (default: 1e-5, more in int8 and fp16)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name (default: the file's).")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="(default: the next that is free)")] = None,
    out: Annotated[Path, typer.Option(help="Where bundles lie.")] = Path("bundles"),
    memory_limit: MemoryLimit = MEMORY_MB,
    time_limit: ImportTimeLimit = SECONDS,
) -> None:
    """Import a streaming ONNX model: find its states, prove that it streams, write a bundle."""
    require("cpu,quantize", "onnx", "onnx_ir", "onnxruntime")
    run_verb(
        "tidegate_export.importing.importer:run",
        {
            "file": str(file),
            "name": name,
            "version": version,
            "out": str(out),
            "states": state,
            "shapes": shape,
            "batch_axes": batch_axis,
            "time_axes": time_axis,
            "constants": constant,
            "contexts": context,
            "initial": None if initial is None else str(initial),
            "is_within_frame": within_frame,
            "tolerance": tolerance,
        },
        ResourceLimits(memory_limit, time_limit),
    )
