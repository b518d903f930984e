"""A test whose program is missing is named in the closing lines with the command that brings it; CI must have all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import SYSTEM_PACKAGES

TEST = "tests/deploy/test_prometheus.py::test_alertmanager_accepts_its_configuration"
COMMAND = "sudo apt-get install --yes prometheus-alertmanager"


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """A PATH with nothing but what the script itself runs."""
    for name in ("bash", "env", "python3", "ls", "sort"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return str(tmp_path)


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | variables
    root = SYSTEM_PACKAGES.parents[1]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_a_test_without_its_program_is_left_out_by_name(bare_path: str) -> None:
    told = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", TEST, PATH=bare_path)
    assert told.returncode == 0
    *_, missing, name, closing = told.stdout.splitlines()
    assert missing == f"amtool is missing; this brings it: {COMMAND}"
    assert name.strip() == TEST
    assert "1 skipped" in closing


def test_in_ci_a_missing_program_is_an_error(bare_path: str) -> None:
    told = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", TEST, PATH=bare_path, CI="true")
    assert told.returncode == 1
    assert f"amtool is missing: {COMMAND}" in told.stdout


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_where_nothing_can_be_installed_the_command_is_told(bare_path: str, ci: str, code: int) -> None:
    told = run(SYSTEM_PACKAGES, PATH=bare_path, CI=ci)
    assert told.returncode == code
    assert "prometheus-alertmanager" in told.stderr
    assert "sudo apt-get install --yes" in told.stderr
