"""``tidegate check``: verifies bundles and proves anew that they stream. Needs no server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from tidegate.bundle import MANIFEST, Proof, find_bundles
from tidegate.cli.output import AsJson, print_json, print_table
from tidegate.errors import BundleError, ConfigurationError
from tidegate.sandbox import MEMORY_MB, SECONDS, ResourceLimits, run_limited


class Finding(NamedTuple):
    """What is true of one bundle: its proof, or why there is none."""

    path: Path
    proof: Proof | None
    error: BundleError | None

    def as_json(self) -> dict[str, object]:
        if self.error is not None:
            return {
                "bundle": str(self.path),
                "passed": False,
                "reason": self.error.reason,
                "message": str(self.error),
            }
        assert self.proof is not None
        return {"bundle": str(self.path), **self.proof.model_dump()}

    def as_row(self) -> tuple[str, ...]:
        if self.error is not None:
            return str(self.path), self.error.reason, "", "", "", str(self.error)
        assert self.proof is not None
        figures = f"{max(self.proof.max_error, 0):.1e}", f"{self.proof.tolerance:g}"
        return str(self.path), "passed", str(self.proof.cases), *figures, ""


def check(
    paths: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Bundles, or directories of bundles.")],
    memory_limit: Annotated[int, typer.Option(min=256, help="MiB that the check of each may take.")] = MEMORY_MB,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that the check of each may take.")] = SECONDS,
    as_json: AsJson = False,
) -> None:
    """Verify bundles and prove that each streams: any split and any batch give the same result.

    Each is looked at in a process of its own. Exits with 1 if one does not pass.
    """
    limits = ResourceLimits(memory_limit, time_limit)
    findings = [_look_at(bundle, limits) for path in paths for bundle in _bundles(path)]
    if as_json:
        print_json([finding.as_json() for finding in findings])
    else:
        columns = ("bundle", "result", "cases", "error", "tolerance", "message")
        print_table(columns, [finding.as_row() for finding in findings])
    if any(finding.error is not None for finding in findings):
        raise typer.Exit(1)


def _bundles(path: Path) -> list[Path]:
    """The bundles that ``path`` means: itself, the versions in a model's folder, or all in a directory of models."""
    if os.path.lexists(path / MANIFEST):  # whatever it is: reading it says what is wrong with it
        return [Path(os.path.abspath(path))]  # noqa: PTH100 - a link of the model's folder keeps the model's name
    found = list(find_bundles(path)) if path.is_dir() else []
    found = found or [manifest.parent for manifest in sorted(path.glob(f"*/{MANIFEST}"))]
    if not found:
        raise ConfigurationError(f"{path}: no bundle there (NAME/VERSION/{MANIFEST})")
    return found


def _look_at(path: Path, limits: ResourceLimits) -> Finding:
    try:
        proof = run_limited("tidegate.proof:check_path", str(path), limits)
        return Finding(path, Proof.model_validate(proof), None)
    except BundleError as error:
        return Finding(path, None, error)
