"""The names of sessions: which ones a client may choose, and how the server makes its own."""

from __future__ import annotations

import re
import secrets

from tidegate.api import SessionKey
from tidegate.errors import InvalidInputError, shown
from tidegate.limits import MAX_NAME_LENGTH

_NAME = re.compile(rf"[A-Za-z0-9._~-]{{1,{MAX_NAME_LENGTH}}}")

EPHEMERAL = "e~"
"""``e~<replica>~<random>``: an ephemeral session, which lives on that replica only."""
DURABLE = "d~"
"""``d~<random>``: a durable one."""
DEFAULT_TENANT = "default"
"""Whose all sessions are, as long as nobody says who asks."""
SEQUENCE = "q~"
"""A sequence of the Open Inference Protocol; what follows is its key."""


def new_ephemeral(replica: str) -> str:
    return f"{EPHEMERAL}{replica}~{secrets.token_urlsafe(16)}"


def new_durable() -> str:
    return f"{DURABLE}{secrets.token_urlsafe(16)}"


def key_of(id_: str) -> SessionKey:
    """Return what the session is stored under."""
    return SessionKey(DEFAULT_TENANT, id_)


def replica_of(id_: str) -> str | None:
    """Return the replica that an ephemeral session's id names; None for any other id."""
    parts = id_.split("~", 2)
    return parts[1] if id_.startswith(EPHEMERAL) and len(parts) == 3 else None


def check_chosen(id_: str) -> None:
    """Raise InvalidInputError unless a client may choose the id."""
    reserved = (EPHEMERAL, DURABLE, SEQUENCE)
    if not _NAME.fullmatch(id_) or id_.startswith(reserved):
        raise InvalidInputError(
            f"{shown(id_)} is not a session id: 1 to 128 of A-Z a-z 0-9 . _ ~ -, not beginning with "
            f"{' '.join(reserved)}",
            reason="BAD_SESSION_ID",
        )


def check_checkpoint(name: str) -> None:
    """Raise InvalidInputError unless it is a name for a checkpoint."""
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{shown(name)} is not a checkpoint's name: 1 to 128 of A-Z a-z 0-9 . _ ~ -", reason="BAD_CHECKPOINT"
        )
