"""What the server counts itself, read from /metrics."""

from __future__ import annotations

import urllib.request
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from bench.processes import Running

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Reaches this machine, whatever proxy the environment names."""


class Counts(NamedTuple):
    """Runs of onnxruntime, their rows and steps since the server started, over all models."""

    runs: float
    rows: float
    steps: float

    def since(self, before: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def rows_per_run(self) -> float:
        return self.rows / self.runs if self.runs else 0.0


def read_counts(target: Running) -> Counts:
    with DIRECT.open(f"http://127.0.0.1:{target.port('http')}/metrics") as reply:
        text = reply.read().decode()
    sums = dict.fromkeys(("tidegate_runs_total", "tidegate_rows_total", "tidegate_steps_total"), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
    return Counts(*sums.values())
