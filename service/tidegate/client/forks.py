"""Forks of a process that uses gRPC: a child may make clients of its own, and is told where it cannot.

Theory of operation. gRPC has threads, which a fork does not copy. It puts itself right in the child if it was told to
(the variable GRPC_ENABLE_FORK_SUPPORT, when grpc is imported) and if no thread is inside of it at the moment of the
fork; else calls of the child fail or hang. Therefore a fork waits for blocking calls of other threads, and new ones
wait for the fork. A channel of asyncio has a thread that is always inside. Where gRPC could not put itself right, the
child's next client says so, and so does every use of a client that the parent made.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from tidegate.errors import FailedPreconditionError

REASON = "FORKED"
WAIT_SECONDS = 5.0
"""How long a fork waits for calls: as long as gRPC waits for threads of its own."""

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"

if "grpc" not in sys.modules:
    os.environ.setdefault(_VARIABLE, "1")
_IS_SUPPORTED = os.environ.get(_VARIABLE, "").lower() in {"1", "true", "yes"}


class ForkGuard:
    """What a fork has to wait for, and what it leaves behind."""

    def __init__(self) -> None:
        self.open_async: weakref.WeakSet[object] = weakref.WeakSet()
        self._obstacle: str | None = None
        self._is_watching = False
        self._is_forking = False
        self._num_calls = 0
        self._changed = threading.Condition()

    def require_usable(self) -> None:
        """Raises:
        FailedPreconditionError: gRPC cannot be used in this process.
        """
        if self._obstacle is not None:
            raise FailedPreconditionError(
                f"gRPC cannot be used in this process, which was forked from one that used it: {self._obstacle}. "
                "A process that is spawned is always free to use it",
                reason=REASON,
            )

    def watch(self) -> None:
        """Watch over forks, from the first channel on: handlers that are registered after gRPC's run before them."""
        with self._changed:
            if not self._is_watching and hasattr(os, "register_at_fork"):
                self._is_watching = True
                os.register_at_fork(
                    before=self._before, after_in_parent=self._after_in_parent, after_in_child=self._after_in_child
                )

    @contextmanager
    def call(self) -> Iterator[None]:
        """A blocking call, for which forks wait."""
        with self._changed:
            while self._is_forking:
                self._changed.wait()
            self._num_calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_calls -= 1
                self._changed.notify_all()

    def _before(self) -> None:
        with self._changed:
            self._is_forking = True
            self._changed.wait_for(lambda: not self._num_calls, WAIT_SECONDS)

    def _after_in_parent(self) -> None:
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()

    def _after_in_child(self) -> None:
        if not _IS_SUPPORTED:
            self._obstacle = f"grpc was imported without {_VARIABLE}=1; import tidegate.client before it"
        elif self._num_calls:
            self._obstacle = "another thread was in a call at that moment"
        elif len(self.open_async):
            self._obstacle = "an AsyncClient was open; close it before"
        self._is_forking, self._num_calls = False, 0
        self.open_async = weakref.WeakSet()
        self._changed = threading.Condition()  # another thread may have held it


FORKS = ForkGuard()


class Origin:
    """The process that a connection was made in."""

    def __init__(self) -> None:
        FORKS.require_usable()
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        return self._pid == os.getpid()

    def require_here(self) -> None:
        """Raises:
        FailedPreconditionError: This process was forked from the one that made the connection.
        """
        if self._pid != os.getpid():
            raise FailedPreconditionError(
                "this client was made before the process was forked: make a new one in each child", reason=REASON
            )
