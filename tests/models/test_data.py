"""The archive loader: real archives, a real pip where pip is the point."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tidegate_models.data import PackageSource, cache_folder, pip_download, read_members
from tidegate_models.errors import TrainingInputError

FILES = {"pkg-1/data/b.txt": b"bee", "pkg-1/data/a.txt": b"ay", "pkg-1/setup.py": b"raise SystemExit('never run')"}


def as_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def as_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Index:
    """Serves one archive and counts how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests = 0
        self.source = PackageSource("pkg", "1", hashlib.sha256(content).hexdigest(), "MIT")

    def __call__(self, source: PackageSource, folder: Path) -> None:
        self.requests += 1
        (folder / "pkg-1.archive").write_bytes(self.content)


@pytest.mark.parametrize("archive", [as_zip(), as_tar()], ids=["zip", "tar"])
def test_members_come_sorted_and_the_archive_is_fetched_once(archive: bytes, tmp_path: Path) -> None:
    index = Index(archive)
    for _ in range(2):
        members = read_members(index.source, "*/data/*.txt", cache=tmp_path, fetch=index)
        assert list(members.items()) == [("pkg-1/data/a.txt", b"ay"), ("pkg-1/data/b.txt", b"bee")]
    assert index.requests == 1


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    index = Index(as_zip())
    read_members(index.source, "*", cache=tmp_path, fetch=index)
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(b"half")
    assert read_members(index.source, "*/a.txt", cache=tmp_path, fetch=index) == {"pkg-1/data/a.txt": b"ay"}
    assert index.requests == 2


def test_other_bytes_than_expected_are_refused_and_not_kept(tmp_path: Path) -> None:
    index = Index(as_zip())
    wrong = PackageSource("pkg", "1", "0" * 64, "MIT")
    with pytest.raises(TrainingInputError, match=r"has sha256 .*, expected 000"):
        read_members(wrong, "*", cache=tmp_path, fetch=index)
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_nothing_matches_is_an_error(tmp_path: Path) -> None:
    index = Index(as_tar())
    with pytest.raises(TrainingInputError, match=r"pkg==1 holds no file that matches '\*\.csv'"):
        read_members(index.source, "*.csv", cache=tmp_path, fetch=index)


def test_pip_downloads_a_wheel_without_installing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, into = tmp_path / "shelf", tmp_path / "into"
    shelf.mkdir()
    into.mkdir()
    with zipfile.ZipFile(shelf / "tidegate_sample-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tidegate_sample/data.csv", "a\n1\n")
        wheel.writestr(
            "tidegate_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tidegate-sample\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tidegate_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tidegate_sample-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    pip_download(PackageSource("tidegate-sample", "1.0", "", "MIT"), into)
    assert [path.name for path in into.iterdir()] == ["tidegate_sample-1.0-py3-none-any.whl"]
    with pytest.raises(TrainingInputError, match=r"could not download tidegate-sample==9\.9: .+"):
        pip_download(PackageSource("tidegate-sample", "9.9", "", "MIT"), into)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
