"""A worker's place among its fellows, and the rule by which all of them know whose a session is.

Knows numbers, names and paths. Starts nothing, sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from zlib import crc32


@dataclass(frozen=True, slots=True)
class Seat:
    """One of ``count`` workers of the server ``replica``.

    Attributes:
        folder: Where their sockets lie, and what is to outlive a worker; None: there is none.
        abstract: What the names of their sockets begin with, where they lie in no folder.
    """

    replica: str
    number: int
    count: int
    folder: Path | None
    abstract: str = ""

    @property
    def name(self) -> str:
        """The worker's own replica name: it stands in the ids that it makes for sessions."""
        return f"{self.replica}-{self.number}"

    @property
    def others(self) -> list[int]:
        return [number for number in range(self.count) if number != self.number]

    def address(self, number: int) -> str:
        """Where a worker answers its fellows; it stays the same when the worker is started again."""
        if self.folder is None:
            return f"unix-abstract:{self.abstract}-{number}"
        return f"unix:{self.folder / f'{number}.sock'}"

    def target(self, number: int) -> str:
        """The same address as gRPC's clients write it: as a URI, in which not every path can stand as it is."""
        return quote(self.address(number), safe=":/-_.~")

    def owner(self, session: str) -> int:
        """The number of the worker that a session lives on; every worker comes to the same answer.

        An id that a worker made says so itself, one that a client chose is hashed. An id of another server's worker is
        nobody's: the worker that was asked refuses it.
        """
        # The desk's ids of ephemeral sessions are e~<name>~<random>; clients may not choose such.
        if not session.startswith("e~"):
            return crc32(session.encode()) % self.count
        replica, _, number = session[2:].partition("~")[0].rpartition("-")
        is_ours = replica == self.replica and number.isdecimal() and int(number) < self.count
        return int(number) if is_ours else self.number
