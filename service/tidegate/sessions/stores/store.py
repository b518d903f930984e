"""What a store of durable sessions does, whichever it is.

A store keeps opaque bytes under a session's key, with the random *revision* of the write that put them there, and
changes them only by compare-and-set on that revision. It knows nothing of positions, states or models. What it keeps
of a session is in two parts: the *summary*, short, which lists, expiry and erasure read, and the *body*, which only
whoever steps or branches the session reads. Whether what it returns is undamaged is for its reader to check
(`sessions.records`); what cannot be read of one entry comes as empty bytes, which no check passes, and never fails a
call for others.

Errors are `tidegate.errors.UnavailableError` where the store cannot answer now (``STORE_AWAY``, ``STORE_FULL``,
``STORE_CORRUPT``: the reason says which); after one, the outcome of a write is unknown until the entry is read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from tidegate.api import SessionKey
from tidegate.errors import UnavailableError

FORMAT = 2
"""Of what stores hold. A store of a newer format is refused at the start; an older one is migrated first."""


class Stored(NamedTuple):
    """What is stored of one session, without its body."""

    revision: bytes
    summary: bytes


TROUBLES = {
    "STORE_AWAY": "the store of sessions is away",
    "STORE_FULL": "the store of sessions is full",
    "STORE_CORRUPT": "what the store of sessions holds is damaged",
}
"""What callers are told, by reason; where the store is and what it said is for the log."""

_RETRY_AFTER_SECONDS = 1.0


def trouble(reason: str, cause: str) -> UnavailableError:
    """Return the error for a store that cannot answer, for a reason of `TROUBLES`; ``cause`` is for the log."""
    return UnavailableError(TROUBLES[reason], reason=reason, retry_after=_RETRY_AFTER_SECONDS, cause=cause)


class Entry(NamedTuple):
    """All that is stored of one session but its attachments."""

    revision: bytes
    summary: bytes
    body: bytes


class Due(NamedTuple):
    """When a session's expiry is to be looked at, by the store's clock; None: never."""

    at: float | None


class Write(NamedTuple):
    """One compare-and-set. A tuple, because it is made in a third of the time of a frozen dataclass, once a step.

    Attributes:
        key: The session's.
        expected: The revision that must be stored; None: nothing may be stored under the key.
        revision: The new one, 16 random bytes.
        summary: The new one.
        body: The new one; None leaves what is stored, or is empty where nothing is.
        due: When to look at its expiry; None leaves that as it is (a step moves a session's end, not its entry in the
            order of expiry: an entry that comes up early is put back).
        is_listed: Whether `Store.page` shows it; an ended session is kept for a while and not shown.
        attachments: Named bytes stored with the session (checkpoints): to be put, or, with None, removed. Atomic with
            the record, and gone with it.
    """

    key: SessionKey
    expected: bytes | None
    revision: bytes
    summary: bytes
    body: bytes | None = None
    due: Due | None = None
    is_listed: bool = True
    attachments: Mapping[str, bytes | None] = MappingProxyType({})


def are_steps(writes: Sequence[Write]) -> bool:
    """Whether they only replace what is stored of running sessions, as nearly all writes do."""
    return all(
        expected is not None and body is not None and due is None and is_listed and not attachments
        for _, expected, _, _, body, due, is_listed, attachments in writes
    )


class Store(Protocol):
    """Durable sessions by key. All methods belong to one event loop and never block it."""

    async def start(self) -> None:
        """Open it.

        Raises:
            ConfigurationError: It can never work: another format, a path that cannot be written, wrong credentials.
            UnavailableError: It does not answer yet; `start` may be called again.
        """

    async def stop(self) -> None:
        """Let go of it; what was written stays."""

    async def ping(self) -> None:
        """Return if it can be written: prove it by a small write, which leaves nothing."""

    async def time(self) -> float:
        """Return the time by which sessions of this store expire, in seconds since the epoch: by a clock that all
        replicas share, where the store has one.
        """

    async def read(self, keys: Sequence[SessionKey]) -> list[Entry | None]:
        """Return the entries, in order; None for what is not stored."""

    async def read_summaries(self, keys: Sequence[SessionKey]) -> list[Stored | None]:
        """As `read`, without the bodies, which are neither read nor carried."""

    async def read_attachment(self, key: SessionKey, name: str) -> bytes | None:
        """Return the attachment, or None."""

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        """Try each write, of different sessions; return which were made. Each is atomic by itself."""

    async def delete(self, key: SessionKey, expected: bytes) -> bool:
        """Remove the entry and its attachments if its revision is ``expected``; return whether it was."""

    async def due(self, now: float, limit: int) -> list[SessionKey]:
        """Return up to ``limit`` keys whose time to be looked at has come by ``now``.

        A store may look at a part of what it holds, another one at each call that finds less than ``limit``: what is
        due comes up within `DUE_CALLS` such calls, the earliest first within its part.
        """

    async def postpone(self, key: SessionKey, at: float | None) -> None:
        """Look at an entry's expiry at another time, whatever its revision; nothing where it is not stored."""

    async def page(self, tenant: str, limit: int, after: str) -> list[tuple[str, Stored]]:
        """Return up to ``limit`` listed entries of a tenant with ids above ``after``, by rising id (code points)."""


DUE_CALLS = 16
"""Calls of `Store.due`, each with less than its limit, after which all that was due has come up."""
