"""``tidegate check``: verifies bundles and repeats the proof that they stream. Needs no server."""

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
    """Result for one bundle: its proof, or the error."""

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
    paths: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Bundles, folders of models, or directories of bundles.")
    ],
    memory_limit: Annotated[int, typer.Option(min=256, help="MiB of memory for the check of one bundle.")] = MEMORY_MB,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds for the check of one bundle.")] = SECONDS,
    as_json: AsJson = False,
) -> None:
    """Verify bundles and prove that each can stream: every split and every batch give the same result.

    Each check runs in its own process. The exit code is 1 if a bundle does not pass.
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
    """Return the bundles at ``path``: itself, all versions in a model's folder, or all in a directory of models."""
    if os.path.lexists(path / MANIFEST):  # of any kind: reading it reports what is wrong
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
