"""`tidegate export`, a training run or a module of the user's own becomes a bundle, and `tidegate quantize`, a bundle
becomes a smaller one.

Knows the command line. Imports torch and onnx only when called, so that a serving-only installation can list the
commands. A verb does its work in a process of its own, with limits, for the graph may be anybody's.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from tidegate.bundle import Json
from tidegate.errors import BundleError
from tidegate.sandbox import MEMORY_MB, ResourceLimits, run_limited

LONG_SECONDS = 3600.0
"""For what trains nothing, but may run a graph over years of held-out data."""

MemoryLimit = Annotated[
    int, typer.Option("--memory-limit", "--memory-mb", min=256, help="MiB of memory that it may take.")
]
TimeLimit = Annotated[float, typer.Option("--time-limit", min=1, help="Seconds that it may take.")]


def export(  # noqa: PLR0913, PLR0917 - the command line's options
    source: Annotated[
        str,
        typer.Argument(
            help="A run directory; my_module:factory or FILE.py:factory of a module of your own; a bundle to calibrate."
        ),
    ],
    weights: Annotated[Path | None, typer.Option(help="State dict of that module, read with weights_only.")] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name (default: the run's).")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="(default: the next that is free)")] = None,
    shape: Annotated[
        str | None,
        typer.Option("--example-shape", "--input", help="1,8,16 (batch, time, features), time,batch,16 or tokens."),
    ] = None,
    task: Annotated[Literal["stream", "next_token"], typer.Option(help="What the module's output is.")] = "stream",
    vocabulary: Annotated[Path | None, typer.Option(help='JSON: {"tokens": […], "unknown": id or null}.')] = None,
    features: Annotated[str | None, typer.Option(help="Names of the input's columns: a,b,c.")] = None,
    out: Annotated[Path, typer.Option(help="Where bundles lie.")] = Path("bundles"),
    memory_limit: MemoryLimit = MEMORY_MB,
    time_limit: TimeLimit = LONG_SECONDS,
) -> None:
    """Export a model as a bundle, and prove that it streams and computes what PyTorch computes."""
    require("train", "torch", "onnx", "onnxscript", "onnxruntime")
    said = {
        "source": source,
        "weights": None if weights is None else str(weights),
        "name": name,
        "version": version,
        "shape": shape,
        "task": task,
        "vocabulary": None if vocabulary is None else str(vocabulary),
        "features": features,
        "out": str(out),
    }
    # What the module's own code prints is for the user.
    run_verb("tidegate_export.command:run", said, ResourceLimits(memory_limit, time_limit), is_quiet=False)


def quantize(  # noqa: PLR0913, PLR0917 - the command line's options
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="NAME/VERSION of the bundle to start from.")],
    method: Annotated[
        Literal["static", "dynamic", "weight-only"] | None,
        typer.Option(help="int8 with fixed scales, with each run's own, or of stored weights only (default: static)."),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision instead of int8, for CUDA.")] = False,
    name: Annotated[str | None, typer.Option(help="(default: the bundle's with -int8 or -fp16)")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="(default: the next that is free)")] = None,
    out: Annotated[Path, typer.Option(help="Where bundles lie.")] = Path("bundles"),
    seconds: Annotated[float, typer.Option(min=0, help="How long each timing takes; there are 30.")] = 0.3,
    memory_limit: MemoryLimit = MEMORY_MB,
    time_limit: TimeLimit = LONG_SECONDS,
) -> None:
    """Make a smaller bundle of a bundle, prove that it streams, and measure what it costs and gains."""
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
    """End with one line where a package is not installed."""
    for package in packages:
        if find_spec(package) is None:
            typer.echo(f"{package} is not installed: pip install 'tidegate[{extra}]'", err=True)
            raise typer.Exit(2)


def run_verb(function: str, said: Json, limits: ResourceLimits, *, is_quiet: bool = True) -> None:
    """Let ``function`` (``module:name``), which returns what to tell and whether there is a bundle, do what was said.

    Raises:
        typer.Exit: There is none.
    """
    try:
        told, is_done = run_limited(function, said, limits, is_quiet=is_quiet)
    except BundleError as error:
        told, is_done = error.message, False
    typer.echo(told, err=not is_done)
    if not is_done:
        raise typer.Exit(2)
