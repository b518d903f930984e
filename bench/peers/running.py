"""A peer as a process with children: installed, started, ready when it answers a step, ended with all of them.

Knows processes, environments and /proc. Knows nothing of what a peer is or of what is measured.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from bench.client import LoadError
from bench.processes import ROOT, Running, environment

INSTALL_SECONDS = 900
READY_SECONDS = 90
END_SECONDS = 15


class PeerError(RuntimeError):
    """A peer could not be installed or started."""


def install(folder: Path) -> Path:
    """Bring ``folder``'s own environment up to date with its requirements; returns the directory of its programs.

    Raises:
        PeerError: The requirements cannot be installed here.
    """
    wanted = (folder / "requirements.txt").read_text(encoding="utf-8")
    programs, stamp = folder / ".venv" / "bin", folder / ".venv" / "installed.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        _run(sys.executable, "-m", "venv", str(folder / ".venv"))
        _run(str(programs / "python"), "-m", "pip", "install", "--quiet", "-r", str(folder / "requirements.txt"))
        stamp.write_text(wanted, encoding="utf-8")
    return programs


def _run(*command: str) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"not installed after {INSTALL_SECONDS} s") from error
    if result.returncode:
        raise PeerError(f"not installed: {_last_error(result.stderr)}")


def _last_error(text: str) -> str:
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in reversed(lines) if "ERROR" in line), lines[-1])[:300]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; other processes may take them before a peer does."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in sockets]


@contextlib.contextmanager
def started(
    command: Sequence[str], port: int, variables: dict[str, str], answers: Callable[[Running], object]
) -> Iterator[Running]:
    """``command`` as a process that listens on ``port``, from the moment ``answers`` no longer raises LoadError.

    Raises:
        PeerError: It ended, or did not answer within READY_SECONDS.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as log, _process(command, variables, log.fileno()) as process:
        running = Running(process.pid, {"port": port}, 0.0)
        while (why := _why_not(answers, running)) is not None:
            is_late = time.perf_counter() - begin > READY_SECONDS
            if is_late or process.poll() is not None:
                log.seek(0)
                raise PeerError(f"not ready ({why}): {log.read()[-1500:].decode(errors='replace').strip()}")
            time.sleep(0.25)
        yield Running(process.pid, {"port": port}, time.perf_counter() - begin)


def _why_not(answers: Callable[[Running], object], running: Running) -> str | None:
    try:
        answers(running)
    except LoadError as error:
        return str(error)
    return None


@contextlib.contextmanager
def _process(command: Sequence[str], variables: dict[str, str], log: int) -> Iterator[subprocess.Popen[bytes]]:
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "service")])}
    with subprocess.Popen(command, cwd=ROOT, env=environment() | paths | variables, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end; whatever of its family is left after that is killed, and gone when this returns."""
    with contextlib.ExitStack() as stack:
        family = [stack.enter_context(handle) for pid in family_of(process.pid) if (handle := _handle(pid)) is not None]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        for handle in family:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle.fileno(), signal.SIGKILL)
            select.select([handle], [], [], END_SECONDS)


def _handle(pid: int) -> IO[bytes] | None:
    """A file that can be read once the process has ended, and that never means another process; None if it has gone."""
    try:
        return os.fdopen(os.pidfd_open(pid), "rb", buffering=0)
    except ProcessLookupError:
        return None


def family_of(pid: int) -> list[int]:
    """The process and all that descend from it now, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent_of(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def _parent_of(entry: Path) -> int | None:
    """The parent in a process' /proc entry; None where the process has gone meanwhile."""
    try:
        return int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return None
