"""Log lines on their way out: a bounded queue and a thread of its own that writes, so that nobody who logs ever waits.

Whoever reads the log may stop for a while (a container runtime, journald, a terminal that is held), and a disk may be
full. Lines wait meanwhile; what does not fit any more is dropped and counted, and one line says how many were as soon
as lines can be written again. Knows bytes and a descriptor; nothing of levels or formats.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

MAX_BYTES = 4 * 2**20
"""What may wait: some 20,000 lines."""

_BATCH_BYTES = 2**16


class LogWriter:
    """Writes lines to a descriptor, from a thread that begins with the first line.

    Args:
        descriptor: Where to; it stays the caller's.
        notice: Makes the line that says that so many lines were dropped.
        max_bytes: What may wait at most.
    """

    def __init__(self, descriptor: int, notice: Callable[[int], str], max_bytes: int = MAX_BYTES) -> None:
        self._descriptor = descriptor
        self._notice = notice
        self._max_bytes = max_bytes
        # A write of this size is not torn apart by those of other processes that write into the same pipe.
        self._unit = _BATCH_BYTES if stat.S_ISREG(os.fstat(descriptor).st_mode) else select.PIPE_BUF
        self._num_dropped = self._num_told = 0
        self._is_closed = self._is_torn = False
        self._thread: threading.Thread | None = None
        self._begin()
        own = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _begin_anew(own()))

    @property
    def num_dropped(self) -> int:
        """Lines that were never written, so far."""
        return self._num_dropped

    def write(self, text: str) -> None:
        """Let lines be written, each ending in a line break; never blocks, whatever the reader does.

        May be called from everywhere, also from a signal's handler or a destructor amid another call of it: that is why
        the lock is reentrant and the queue is a SimpleQueue.
        """
        data = text.encode(errors="backslashreplace")
        with self._lock:
            if self._is_closed or self._num_bytes + len(data) > self._max_bytes:
                self._num_dropped += data.count(b"\n")
                return
            self._num_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tidegate-log", daemon=True)
                self._thread.start()
        self._queue.put(data)

    def close(self, seconds: float) -> None:
        """Write what waits, for so many seconds at most: a reader that has stopped keeps no process from ending."""
        with self._lock:
            self._is_closed, thread = True, self._thread
        self._queue.put(None)
        if thread is not None:
            thread.join(seconds)

    def _begin(self) -> None:
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.RLock()
        self._num_bytes = 0
        self._thread = None

    # From here on: in the thread.

    def _run(self) -> None:
        is_last = False
        while not is_last:
            lines, is_last = self._take()
            for piece in _pieces(lines, self._unit):
                if not self._put(piece):
                    self._drop(piece.count(b"\n"))
            with self._lock:
                self._num_bytes -= sum(map(len, lines))
            if self._num_dropped > self._num_told and self._queue.empty():
                self._tell()

    def _take(self) -> tuple[list[bytes], bool]:
        """Wait for lines; return them, and whether no more will come."""
        lines: list[bytes] = []
        size = 0
        while True:
            data = self._queue.get()
            if data is None:
                return lines, True
            lines += data.splitlines(keepends=True)
            size += len(data)
            if size >= _BATCH_BYTES or self._queue.empty():
                return lines, False

    def _put(self, piece: bytes) -> bool:
        """Write; return whether all of it was."""
        left = memoryview(b"\n" + piece if self._is_torn else piece)
        self._is_torn = False
        whole = len(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody who shares the pipe has set it so
                ready = select.poll()
                ready.register(self._descriptor, select.POLLOUT)
                ready.poll()
            except OSError:  # the reader has gone, or the disk is full: there is nobody to tell
                self._is_torn = len(left) < whole
                return False
        return True

    def _drop(self, num_lines: int) -> None:
        with self._lock:
            self._num_dropped += num_lines

    def _tell(self) -> None:
        with self._lock:
            dropped = self._num_dropped
        if self._put(self._notice(dropped - self._num_told).encode()):
            self._num_told = dropped


def _pieces(lines: Sequence[bytes], size: int) -> Iterator[bytes]:
    """Join lines to pieces of ``size`` bytes at most; a line that is longer is a piece by itself."""
    piece: list[bytes] = []
    length = 0
    for line in lines:
        if piece and length + len(line) > size:
            yield b"".join(piece)
            piece, length = [], 0
        piece.append(line)
        length += len(line)
    if piece:
        yield b"".join(piece)


def _begin_anew(writer: LogWriter | None) -> None:
    """In a forked child there is no thread, and what waits is the parent's to write."""
    if writer is not None:
        writer._begin()  # noqa: SLF001
