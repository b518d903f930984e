"""A small disk of its own, to be filled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.programs import require_mounting

BALLAST = "ballast"


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount ``folder`` as a memory disk of ``size`` bytes; needs root."""
    require_mounting()
    folder.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all but ``leave`` bytes; return the file that takes them, to be deleted."""
    ballast = disk / BALLAST
    status = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - leave))
    return ballast
