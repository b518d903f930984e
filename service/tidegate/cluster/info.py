"""Which worker of a server this is, and the rule by which all workers know which one holds a session.

Knows ranks, names and paths. Starts nothing, sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from zlib import crc32


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One of ``world_size`` workers of the server ``replica``; ``rank`` counts from 0.

    Attributes:
        folder: Where their sockets lie, and what is to outlive a worker; None: there is none.
        abstract: What the names of their sockets begin with, where they lie in no folder.
    """

    replica: str
    rank: int
    world_size: int
    folder: Path | None
    abstract: str = ""

    @property
    def name(self) -> str:
        """The worker's own replica name: it stands in the ids that it makes for sessions."""
        return f"{self.replica}-{self.rank}"

    @property
    def other_ranks(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank != self.rank]

    def address(self, rank: int) -> str:
        """Where a worker answers its peers; it stays the same when the worker is started again."""
        if self.folder is None:
            return f"unix-abstract:{self.abstract}-{rank}"
        return f"unix:{self.folder / f'{rank}.sock'}"

    def target(self, rank: int) -> str:
        """The same address as gRPC's clients write it: as a URI, in which not every path can stand as it is."""
        return quote(self.address(rank), safe=":/-_.~")

    def owner(self, session: str) -> int:
        """The rank of the worker that holds a session; every worker comes to the same answer.

        An id that a worker made says so itself, one that a client chose is hashed. An id of another server's worker is
        nobody's: the worker that was asked refuses it.
        """
        # Ids that a worker makes for ephemeral sessions are e~<name>~<random>; clients may not choose such.
        if not session.startswith("e~"):
            return crc32(session.encode()) % self.world_size
        replica, _, rank = session[2:].partition("~")[0].rpartition("-")
        is_ours = replica == self.replica and rank.isdecimal() and int(rank) < self.world_size
        return int(rank) if is_ours else self.rank
