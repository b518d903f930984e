"""`tidegate export` makes a bundle of a training run or a user's module; `tidegate quantize` makes a smaller bundle.

Torch and onnx are imported only when a command runs, so that an installation without them can list the commands. The
work runs in a separate process with limits on memory and time, because the graph may come from an untrusted source.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from tidegate.bundle import Json
from tidegate.errors import BundleError
from tidegate.sandbox import MEMORY_MB, ResourceLimits, run_limited
from tidegate_export.meaning import Descriptions, FrameLength, SampleRate, Units

LONG_SECONDS = 3600.0
"""Default time limit. An export may run a graph over years of held-out data."""

MemoryLimit = Annotated[int, typer.Option("--memory-limit", "--memory-mb", min=256, help="Memory limit, in MiB.")]
TimeLimit = Annotated[float, typer.Option("--time-limit", min=1, help="Time limit, in seconds.")]
ReachOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1_000_000,
        help="Steps that no memory outside of the states reaches back more than: the proof covers them.",
        show_default="read off the graph",
    ),
]


def export(  # noqa: PLR0913, PLR0917 - the command line's options
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a run; my_module:factory or FILE.py:factory for your own module; or a bundle to calibrate."
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of your own module: a file of torch.save, .safetensors or .npz. No code in it runs."
        ),
    ] = None,
    weights_key: Annotated[
        str | None,
        typer.Option(help="Which weights to take where the file has them more than once, like state_dict_ema."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle.", show_default="the run's")] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version of the bundle.", show_default="the next free one")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--example-shape",
            "--input",
            help="Input of your own module: 1,8,16 (batch, time, features), time,batch,16 or tokens. "
            "Several: NAME=1,8,16 for each; NAME=batch,16 is a setting, the same for all steps.",
        ),
    ] = None,
    task: Annotated[Literal["stream", "next_token"], typer.Option(help="Task of your own module.")] = "stream",
    vocabulary: Annotated[Path | None, typer.Option(help='JSON file: {"tokens": […], "unknown": id or null}.')] = None,
    features: Annotated[str | None, typer.Option(help="Names of the input columns, like a,b,c.")] = None,
    sample_rate: SampleRate = None,
    frame_length: FrameLength = None,
    unit: Units = [],  # noqa: B006 - typer's way; nobody writes to it
    describe: Descriptions = [],  # noqa: B006
    reach: ReachOption = None,
    out: Annotated[Path, typer.Option(help="Directory of bundles to write to.")] = Path("bundles"),
    memory_limit: MemoryLimit = MEMORY_MB,
    time_limit: TimeLimit = LONG_SECONDS,
) -> None:
    """Export a model as a bundle. Prove that it can stream and that its results are equal to PyTorch's."""
    require("train", "torch", "onnx", "onnxscript", "onnxruntime", "safetensors")
    said = {
        "source": source,
        "weights": None if weights is None else str(weights),
        "weights_key": weights_key,
        "name": name,
        "version": version,
        "shapes": shapes or [],
        "task": task,
        "vocabulary": None if vocabulary is None else str(vocabulary),
        "features": features,
        "sample_rate": sample_rate,
        "frame_length": frame_length,
        "unit": unit,
        "describe": describe,
        "reach": reach,
        "out": str(out),
    }
    # The user sees what the module's own code prints.
    run_verb("tidegate_export.command:run", said, ResourceLimits(memory_limit, time_limit), is_quiet=False)


def quantize(  # noqa: PLR0913, PLR0917 - the command line's options
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="Folder of the bundle, .../NAME/VERSION.")],
    method: Annotated[
        Literal["static", "dynamic", "weight-only"] | None,
        typer.Option(
            help="int8 with fixed scales (static), with scales of each run (dynamic), or only for stored weights.",
            show_default="static",
        ),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision instead of int8; meant for CUDA.")] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the new bundle.", show_default="the bundle's with -int8 or -fp16")
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Version of the bundle.", show_default="the next free one")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of bundles to write to.")] = Path("bundles"),
    seconds: Annotated[float, typer.Option(min=0, help="Seconds for each of the 30 timings.")] = 0.3,
    memory_limit: MemoryLimit = MEMORY_MB,
    time_limit: TimeLimit = LONG_SECONDS,
) -> None:
    """Make a smaller bundle from a bundle. Prove that it can stream, and measure its speed and its loss of accuracy."""
    require("cpu,quantize", "onnx", "onnx_ir", "onnxruntime")
    if fp16 and method is not None:
        typer.echo("--fp16 is a method of its own: leave --method out", err=True)
        raise typer.Exit(2)
    chosen = "fp16" if fp16 else method or "static"
    said = {
        "bundle": str(bundle),
        "method": chosen,
        "name": name,
        "version": version,
        "out": str(out),
        "seconds": seconds,
    }
    run_verb("tidegate_export.quantize:run", said, ResourceLimits(memory_limit, time_limit))


def require(extra: str, *packages: str) -> None:
    """Exit with one line on standard error if a package is not installed."""
    for package in packages:
        if find_spec(package) is None:
            typer.echo(f"{package} is not installed: pip install 'tidegate[{extra}]'", err=True)
            raise typer.Exit(2)


def run_verb(function: str, said: Json, limits: ResourceLimits, *, is_quiet: bool = True) -> None:
    """Call ``function`` (``module:name``) in a limited process, and print the text that it returns.

    The function takes ``said`` and returns a text and whether it wrote a bundle.

    Raises:
        typer.Exit: No bundle was written.
    """
    try:
        told, is_done = run_limited(function, said, limits, is_quiet=is_quiet)
    except BundleError as error:
        told, is_done = error.message, False
    typer.echo(told, err=not is_done)
    if not is_done:
        raise typer.Exit(2)
