"""What names a sequence, and the ids of the sessions that it is made of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from tidegate.sessions.ids import SEQUENCE

_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST = 100  # of a session id's 128 characters; the rest is for the row


class Key(NamedTuple):
    """What names a sequence: 5 and "5" are two."""

    model: str
    id: int | str

    def __str__(self) -> str:
        return f"sequence {self.id!r} of model {self.model}"


def session_ids(key: Key) -> Iterator[str]:
    """The ids of a sequence's sessions, row by row: ``q~i~MODEL~5`` of a number, ``q~s~MODEL~NAME`` of a string.

    What an id of ours cannot hold is written ``~`` and two hexadecimal digits a byte; what is too long, by its SHA-256.
    Further rows have ``~r1``, ``~r2`` and so on behind it.
    """
    kind = f"{SEQUENCE}s" if isinstance(key.id, str) else f"{SEQUENCE}i"
    first = f"{kind}~{key.model}~{_FORBIDDEN.sub(_quoted, str(key.id))}"
    if len(first) > _LONGEST:
        digest = hashlib.sha256(f"{key.model}/{key.id}".encode("utf-8", "surrogatepass")).hexdigest()
        first = f"{kind}~~{digest}"
    yield first
    for row in count(1):
        yield f"{first}~r{row}"


def _quoted(match: re.Match[str]) -> str:
    return "".join(f"~{byte:02x}" for byte in match[0].encode("utf-8", "surrogatepass"))
