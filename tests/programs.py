"""What a test needs beside Python, asked for where it is used: `program("redis-server")`.

A test whose program is missing is left out, and the closing lines name it with the command that brings the program
(tests/conftest.py writes them). With CI=true it fails instead: the build machine must run everything.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

SYSTEM_PACKAGES = Path(__file__).parents[1] / ".ci/system-packages"
_CAP_SYS_ADMIN = 1 << 21


class LeftOut(NamedTuple):
    """What the closing lines say of a test that was left out: what was missing, and what brings it."""

    missing: str
    remedy: str


# By the reason that pytest reports a skipped test with.
LEFT_OUT: dict[str, LeftOut] = {}


class _Program(NamedTuple):
    is_present: bool
    command: str


def require(name: str) -> None:
    """Go on if a program or library of .ci/system-packages is there; else leave the test out."""
    found = _programs()[name]
    if not found.is_present:
        leave_out(name, found.command)


def program(name: str) -> str:
    """Return the path of a program of .ci/system-packages; leave the test out if it is missing."""
    require(name)
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")  # where users have no PATH to it
    assert path is not None, f"{SYSTEM_PACKAGES.name} found {name}, and it is not in PATH"
    return path


def require_mounting() -> None:
    """Go on if this process may mount disks; else leave the test out."""
    (capabilities,) = re.findall(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not int(capabilities, 16) & _CAP_SYS_ADMIN:
        leave_out("the right to mount a disk", "run the tests as root, in a container with --cap-add SYS_ADMIN")


def leave_out(missing: str, remedy: str, *, is_required_in_ci: bool = True) -> NoReturn:
    """Leave the running test out for what is missing, which ``remedy`` brings; fail it on the build machine."""
    reason = f"{missing} is missing: {remedy}"
    if is_required_in_ci and os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    LEFT_OUT[reason] = LeftOut(missing, remedy)
    pytest.skip(reason)


@functools.cache
def _programs() -> dict[str, _Program]:
    status = subprocess.run([SYSTEM_PACKAGES, "status"], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in status.splitlines():
        name, state, command = line.split("\t")
        found[name] = _Program(state == "present", command)
    return found
