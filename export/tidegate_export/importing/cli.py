"""`tidegate import`: the command that makes a bundle of an ONNX file with states as tensors.

onnx is imported only when the command runs, so that an installation without it can list the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate.sandbox import MEMORY_MB, SECONDS, ResourceLimits
from tidegate_export.cli import MemoryLimit, ReachOption, require, run_verb
from tidegate_export.meaning import Descriptions, FrameLength, SampleRate, Units

Many = list[str]
ImportTimeLimit = Annotated[float, typer.Option("--time-limit", "--seconds", min=1, help="Time limit, in seconds.")]


def import_(  # noqa: PLR0913, PLR0917 - the command line's options
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="ONNX file of the model.")],
    state: Annotated[
        Many,
        typer.Option(
            metavar="IN:OUT", help="Input and output of a state, or none; repeatable. Name all states, or none at all."
        ),
    ] = [],  # noqa: B006 - typer's way; nobody writes to it
    data: Annotated[Many, typer.Option(metavar="NAME", help="An input that is no state; repeatable.")] = [],  # noqa: B006
    shape: Annotated[
        Many,
        typer.Option(
            metavar="NAME=AXES", help="Axes of an input as clients send it, like x=batch,time,80 or x=batch,512."
        ),
    ] = [],  # noqa: B006
    batch_axis: Annotated[
        Many, typer.Option(metavar="N", help="Batch axis, counted from 0, or none; NAME=N for one input.")
    ] = [],  # noqa: B006
    time_axis: Annotated[
        Many,
        typer.Option(
            metavar="N", help="Time axis, counted from 0, or none if a run is one step; NAME=N for one input."
        ),
    ] = [],  # noqa: B006
    constant: Annotated[
        Many, typer.Option(metavar="NAME=VALUE", help="Constant value of an input, like sr=16000; repeatable.")
    ] = [],  # noqa: B006
    setting: Annotated[
        Many,
        typer.Option(
            metavar="NAME=DEFAULT",
            help="An input that callers may set for a session or a request, and its value if none does; repeatable.",
        ),
    ] = [],  # noqa: B006
    context: Annotated[
        Many,
        typer.Option(
            metavar="NAME=N@AXIS",
            help="Put the last N elements of an input before the next ones, along its axis number AXIS or its time; "
            "without @AXIS along the last axis.",
        ),
    ] = [],  # noqa: B006
    initial: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Initial states by input name.", show_default="zeros")
    ] = None,
    within_frame: Annotated[
        bool, typer.Option("--within-frame", help="Layers without state run across a frame, not along time.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=1e-5,
            max=1.0,
            help="Largest difference that counts as equal.",
            show_default="1e-5, more in int8 and fp16",
        ),
    ] = None,
    reach: ReachOption = None,
    sample_rate: SampleRate = None,
    frame_length: FrameLength = None,
    unit: Units = [],  # noqa: B006
    describe: Descriptions = [],  # noqa: B006
    origin: Annotated[
        str | None, typer.Option(help="Where the file comes from, like silero-vad==6.2.3: for the card.")
    ] = None,
    about: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="What the card says of the model: its authors, its licence.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle.", show_default="the file's")] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version of the bundle.", show_default="the next free one")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of bundles to write to.")] = Path("bundles"),
    memory_limit: MemoryLimit = MEMORY_MB,
    time_limit: ImportTimeLimit = SECONDS,
) -> None:
    """Import a streaming ONNX model as a bundle. Find its states, and prove that it can stream."""
    require("cpu,quantize", "onnx", "onnx_ir", "onnxruntime")
    run_verb(
        "tidegate_export.importing.importer:run",
        {
            "file": str(file),
            "name": name,
            "version": version,
            "out": str(out),
            "states": state,
            "data": data,
            "shapes": shape,
            "batch_axes": batch_axis,
            "time_axes": time_axis,
            "constants": constant,
            "settings": setting,
            "contexts": context,
            "initial": None if initial is None else str(initial),
            "is_within_frame": within_frame,
            "tolerance": tolerance,
            "reach": reach,
            "meaning": {
                "sample_rate": sample_rate,
                "frame_length": frame_length,
                "units": unit,
                "descriptions": describe,
            },
            "origin": origin,
            "about": None if about is None else str(about),
        },
        ResourceLimits(memory_limit, time_limit),
    )
