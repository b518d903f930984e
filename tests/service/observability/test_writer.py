"""Lines on their way out: a reader that stops, goes or comes back, and a disk that is full."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.observability.writer import LogWriter

LINE = "x" * 99 + "\n"


def notice(number: int) -> str:
    return f"missing {number}\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's two ends; the reading one may be closed by the test."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(writer)
    with contextlib.suppress(OSError):
        os.close(reader)


def read_until(reader: int, end: str) -> list[str]:
    """Read until a line begins with ``end``."""
    text = b""
    while not any(line.startswith(end.encode()) for line in text.split(b"\n")[:-1]):
        text += os.read(reader, 65536)
    return text.decode().splitlines()


def test_lines_are_written_in_their_order_to_the_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        writer = LogWriter(file.fileno(), notice)
        for number in range(5000):
            writer.write(f"line {number}\n")
        writer.close(60)
    assert (tmp_path / "log").read_text().splitlines() == [f"line {number}" for number in range(5000)]
    assert writer.num_dropped == 0


def test_a_reader_that_stops_holds_up_nobody_and_is_told_what_it_missed(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LogWriter(descriptor, notice, max_bytes=50_000)
    for number in range(5000):  # ten times what the queue and the pipe hold
        writer.write(f"{number:099}\n")
    assert 5000 - (50_000 + 2 * 65_536) / 100 <= writer.num_dropped < 5000
    text, next_number = "", 0
    while next_number < 5000:
        text += os.read(reader, 65536).decode()
        *lines, text = text.split("\n")
        for line in lines:
            # What is there is whole and in its order, and a notice stands where lines are missing.
            if line.startswith("missing"):
                next_number += int(line.removeprefix("missing "))
            else:
                assert line == f"{next_number:099}"
                next_number += 1
    writer.close(60)


def test_a_reader_that_has_stopped_does_not_keep_the_process_from_ending(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LogWriter(descriptor, notice)
    for _ in range(2000):
        writer.write(LINE)
    writer.close(0)
    writer.write(LINE)
    assert writer.num_dropped == 1, "what comes after the end is not kept"
    os.close(reader)
    writer.close(60)  # the thread ends before another test may be given the same descriptor


def test_a_reader_that_has_gone_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    os.close(reader)
    writer = LogWriter(descriptor, notice)
    writer.write(LINE + LINE)
    writer.close(60)
    assert writer.num_dropped == 2


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    os.set_blocking(descriptor, False)
    writer = LogWriter(descriptor, notice)
    for _ in range(5000):
        writer.write(LINE)
    writer.write("end\n")
    assert len(read_until(reader, "end")) == 5001
    writer.close(60)


def test_a_full_disk_costs_lines_and_the_next_one_stands_by_itself() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        os.fdopen(os.memfd_create("log"), "rb+", buffering=0) as file,
    ):
        descriptor = os.dup(full.fileno())
        writer = LogWriter(descriptor, notice)
        writer.write("lost\n")
        while not writer.num_dropped:
            os.sched_yield()
        os.dup2(file.fileno(), descriptor)  # there is room again
        writer.write("kept\n")
        writer.close(60)
        os.close(descriptor)
        file.seek(0)
        assert file.read() == b"kept\nmissing 1\n"


def test_a_forked_child_writes_its_own_lines_and_not_its_parent_s(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LogWriter(descriptor, notice)
    writer.write("parent\n")
    assert read_until(reader, "parent") == ["parent"]
    child = os.fork()
    if child == 0:
        writer.write("child\n")
        writer.close(60)
        os._exit(0)
    assert read_until(reader, "child") == ["child"]
    os.waitpid(child, 0)
    writer.close(60)


def test_a_line_may_be_logged_amid_another_one() -> None:
    """As a signal's handler or a destructor does, in the thread that is logging just now."""
    with os.fdopen(os.memfd_create("log"), "rb+", buffering=0) as file:
        writer = LogWriter(file.fileno(), notice)
        done = threading.Event()

        def log_amid_another() -> None:
            with writer._lock:  # noqa: SLF001
                writer.write("amid\n")
            done.set()

        threading.Thread(target=log_amid_another, daemon=True).start()
        assert done.wait(60)
        writer.close(60)
        file.seek(0)
        assert file.read() == b"amid\n"
