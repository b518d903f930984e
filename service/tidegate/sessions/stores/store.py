"""What a store of durable sessions does, whichever it is.

A store keeps opaque bytes under a session's id, with the random *revision* of the write that put them there, and
changes them only by compare-and-set on that revision. It knows nothing of positions, states or models, and trusts no
clock: times are given to it, in seconds since the epoch.

Errors are `tidegate.errors.UnavailableError` where the store cannot answer now (``STORE_AWAY``, ``STORE_FULL``,
``STORE_CORRUPT``: the reason says which); after one, the outcome of a write is unknown until the entry is read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

FORMAT = 1
"""Of what stores hold. A store that holds a newer format is refused at the start."""


class Entry(NamedTuple):
    """What is stored of one session."""

    revision: bytes
    record: bytes


class Due(NamedTuple):
    """When a session's expiry is to be looked at; None: never."""

    at: float | None


class Write(NamedTuple):
    """One compare-and-set. A tuple, because it is made in a third of the time of a frozen dataclass, once a step.

    Attributes:
        id: The session's.
        expected: The revision that must be stored; None: nothing may be stored under the id.
        revision: The new one, 16 random bytes.
        record: The new content.
        due: When to look at its expiry; None leaves that as it is (a step moves a session's end, not its entry in the
            order of expiry: an entry that comes up early is put back).
        is_listed: Whether `Store.page` shows it; an ended session is kept for a while and not shown.
        attachments: Named bytes stored with the session (checkpoints): to be put, or, with None, removed. Atomic with
            the record, and gone with it.
    """

    id: str
    expected: bytes | None
    revision: bytes
    record: bytes
    due: Due | None = None
    is_listed: bool = True
    attachments: Mapping[str, bytes | None] = MappingProxyType({})


class Store(Protocol):
    """Durable sessions by id. All methods belong to one event loop and never block it."""

    async def start(self) -> None:
        """Open it.

        Raises:
            ConfigurationError: It can never work: a newer format, a path that cannot be written, wrong credentials.
            UnavailableError: It does not answer yet; `start` may be called again.
        """

    async def stop(self) -> None:
        """Let go of it; what was written stays."""

    async def ping(self) -> None:
        """Return if it answers."""

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return the entries, in order; None for what is not stored."""

    async def read_attachment(self, id: str, name: str) -> bytes | None:  # noqa: A002
        """Return the attachment, or None."""

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        """Try each write, of different sessions; return which were made. Each is atomic by itself."""

    async def delete(self, id: str, expected: bytes) -> bool:  # noqa: A002
        """Remove the entry and its attachments if its revision is ``expected``; return whether it was."""

    async def due(self, now: float, limit: int) -> list[str]:
        """Return up to ``limit`` ids whose time to be looked at has come, the earliest first."""

    async def postpone(self, id: str, at: float | None) -> None:  # noqa: A002
        """Look at an entry's expiry at another time, whatever its revision; nothing where it is not stored."""

    async def page(self, limit: int, after: str) -> list[tuple[str, Entry]]:
        """Return up to ``limit`` listed entries with ids above ``after``, by rising id (code points)."""
