"""Where workers' sockets lie, on machines where that is a question."""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpc import aio

from tests.service.fake_core import FakeCore
from tests.service.grpc_server import GrpcServer
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.socket_folder import socket_place
from tidegate.errors import ConfigurationError

Point = Callable[[Path], None]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, which pytest's is not."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def point_tmpdir(monkeypatch: pytest.MonkeyPatch) -> Point:
    """Let a directory be the temporary one."""

    def point(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(path))

    return point


def test_sockets_lie_in_the_temporary_directory_and_are_removed(short: Path, point_tmpdir: Point) -> None:
    point_tmpdir(short / "tmp")
    with socket_place(short / "data") as place:
        assert place.folder is not None
        assert place.folder.parent == short / "tmp"
        assert list(place.folder.iterdir()) == []
    assert list((short / "tmp").iterdir()) == []
    assert not (short / "data").exists(), "nothing is made that is not needed"


@pytest.mark.parametrize("name", ["d" * 100, "gone"])
def test_where_the_temporary_directory_will_not_do_they_lie_under_data_dir(
    short: Path, point_tmpdir: Point, name: str
) -> None:
    point_tmpdir(short / name)
    if name == "gone":
        (short / name).rmdir()
    with socket_place(short / "data") as place:
        assert place.folder is not None
        assert place.folder.parent == short / "data"


def test_where_no_directory_will_do_they_lie_in_none(
    short: Path, point_tmpdir: Point, caplog: pytest.LogCaptureFixture
) -> None:
    point_tmpdir(short / ("d" * 100))
    with caplog.at_level(logging.WARNING), socket_place(short / ("e" * 100), has_abstract=True) as place:
        assert place.folder is None
        assert place.abstract.startswith("tidegate-")
    assert "every user of this machine can connect to them" in caplog.text


def test_where_nothing_will_do_one_line_names_the_directories_and_what_to_do(short: Path, point_tmpdir: Point) -> None:
    point_tmpdir(short / ("d" * 100))
    (short / "file").touch()
    with (
        pytest.raises(ConfigurationError) as caught,
        socket_place(short / "file", has_abstract=False),
    ):
        pass
    assert caught.value.message == (
        f"--workers: no place for the workers' sockets ({short / ('d' * 100)}: AF_UNIX path too long; "
        f"{short / 'file'}: File exists): set TMPDIR or --data-dir to a writable directory with a short path"
    )


@pytest.mark.parametrize("name", ["plain", "with space", "a#b?c", "100%25", "Gänge"])
async def test_workers_find_each_other_whatever_the_folder_is_called(short: Path, name: str) -> None:
    (short / name).mkdir()
    await _reach(WorkerInfo("r", 0, 2, short / name))
    assert [path.name for path in (short / name).iterdir()] in ([], ["0.sock"])


async def test_workers_find_each_other_by_abstract_sockets() -> None:
    with socket.socket(socket.AF_UNIX) as free:
        free.bind("\0")  # the system chooses a name that is nobody's
        name = "tidegate-test" + free.getsockname()[1:].decode()
    await _reach(WorkerInfo("r", 0, 2, None, name))


async def _reach(worker: WorkerInfo) -> None:
    server = GrpcServer(FakeCore(), worker.address(0))
    await server.start()
    async with aio.insecure_channel(worker.target(0)) as channel:
        reply = await channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)(b"", timeout=60)
        assert reply == b"\x08\x01"
    await server.stop()
