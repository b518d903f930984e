"""How busy both sides are: what the server counts itself (``/metrics``), and this process's processor time.

A load generator that has no time left measures itself.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tidegate.api import ModelInfo
from tidegate.errors import TidegateError
from tidegate.loadgen.http1 import HttpConnection

OK = 200


class ServerCounts(NamedTuple):
    """Since the server started: runs of the model, rows and steps in them; seconds of the process's CPU time."""

    runs: float = 0
    rows: float = 0
    steps: float = 0
    cpu_seconds: float = 0

    def since(self, before: ServerCounts) -> ServerCounts:
        return ServerCounts(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def rows_per_run(self) -> float | None:
        return self.rows / self.runs if self.runs else None


_FIELDS = {
    "tidegate_runs_total": "runs",
    "tidegate_rows_total": "rows",
    "tidegate_steps_total": "steps",
    "process_cpu_seconds_total": "cpu_seconds",
}


async def read_counts(connection: HttpConnection, model: ModelInfo) -> ServerCounts | None:
    """The counts of that version of the model; None where no metrics can be had."""
    try:
        answer = await connection.request("GET", "/metrics")
    except TidegateError:
        return None
    return parse_counts(answer.body.decode(), model) if answer.status == OK else None


def parse_counts(text: str, model: ModelInfo) -> ServerCounts:
    """Read the counts out of Prometheus' text format."""
    wanted = {"model": model.name, "version": model.version}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _FIELDS and (not sample.labels or wanted.items() <= sample.labels.items()):
                name = _FIELDS[sample.name]
                found[name] = found.get(name, 0.0) + sample.value
    return ServerCounts(**found)


SCHEDSTAT = Path("/proc/self/schedstat")
"""Linux: nanoseconds on a core, nanoseconds ready and waiting for one, turns; of the main thread (sched-stats.rst)."""


class Usage(NamedTuple):
    """Since the process started, or as shares of a time.

    Args:
        cpu: Seconds of processor time, of all threads.
        waiting: Seconds in which the event loop's thread could have run and other processes had the cores; 0 where the
            system does not tell.
    """

    cpu: float
    waiting: float

    def share_since(self, before: Usage, seconds: float) -> Usage:
        """What was used in ``seconds``, in cores: 1.0 is one core all the time."""
        if seconds <= 0:
            return Usage(0, 0)
        return Usage((self.cpu - before.cpu) / seconds, (self.waiting - before.waiting) / seconds)


def read_usage() -> Usage:
    """To be called in the main thread."""
    waiting = 0.0
    with suppress(OSError, ValueError, IndexError):
        waiting = int(SCHEDSTAT.read_text().split()[1]) / 1e9
    return Usage(time.process_time(), waiting)
