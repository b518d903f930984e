"""Counts and durations of each model, as the protocol tells them.

Each request is timed here: reading its tensors, waiting for its result, writing the reply. The engine says how long
its runs took, not who was in them; so of the time waited, one mean run a request is told as inference and the rest as
queue. All sums only grow, for clients subtract one reading from the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from tidegate.api import EngineCounts
from tidegate.clock import Clock

Json = dict[str, Any]
Key = tuple[str, str]


class Timing(NamedTuple):
    """When a request arrived, was handed to the engine, was answered by it, and was written: ``Clock.nanoseconds``."""

    arrived: int
    submitted: int
    answered: int
    written: int


@dataclass(slots=True)
class _Counters:
    num_ok: int = 0
    num_failed: int = 0
    num_rows: int = 0
    ok_ns: int = 0
    failed_ns: int = 0
    input_ns: int = 0
    output_ns: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    last_ms: int = 0
    # What has been counted since the last reading, and what the engine had done by then.
    num_unread: int = 0
    wait_ns_unread: int = 0
    engine: EngineCounts = field(default=EngineCounts(0, 0.0))

    def read(self, engine: EngineCounts) -> None:
        """Part the time waited since the last reading into queue and inference."""
        runs = engine.num_runs - self.engine.num_runs
        seconds = engine.run_seconds - self.engine.run_seconds
        mean_ns = 1e9 * seconds / runs if runs > 0 else 0.0
        infer = min(self.wait_ns_unread, max(0, round(self.num_unread * mean_ns)))
        self.infer_ns += infer
        self.queue_ns += self.wait_ns_unread - infer
        self.num_unread = self.wait_ns_unread = 0
        self.engine = engine


class Statistics:
    """Of all models that were asked for since the start.

    Args:
        engine_counts: What a model's engine has done.
        clock: The engine's, for its runs are held against the requests' times.
    """

    def __init__(self, engine_counts: Callable[[str, str], EngineCounts], clock: Clock) -> None:
        self._engine_counts = engine_counts
        self.clock = clock
        self._counters: dict[Key, _Counters] = {}

    def succeeded(self, model: Key, num_rows: int, timing: Timing) -> None:
        counters = self._of(model)
        counters.num_ok += 1
        counters.num_rows += num_rows
        counters.ok_ns += timing.written - timing.arrived
        counters.input_ns += timing.submitted - timing.arrived
        counters.output_ns += timing.written - timing.answered
        counters.num_unread += 1
        counters.wait_ns_unread += timing.answered - timing.submitted
        counters.last_ms = int(self.clock.wall() * 1000)

    def failed(self, model: Key, arrived: int) -> None:
        """A request that arrived then fails now."""
        counters = self._of(model)
        counters.num_failed += 1
        counters.failed_ns += self.clock.nanoseconds() - arrived

    def document(self, model: Key) -> Json:
        """One entry of ``model_stats``."""
        counters, engine = self._of(model), self._engine_counts(*model)
        counters.read(engine)
        count = counters.num_ok
        return {
            "name": model[0],
            "version": model[1],
            "last_inference": counters.last_ms,
            "inference_count": counters.num_rows,
            "execution_count": engine.num_runs,
            "inference_stats": {
                "success": _duration(count, counters.ok_ns),
                "fail": _duration(counters.num_failed, counters.failed_ns),
                "queue": _duration(count, counters.queue_ns),
                "compute_input": _duration(count, counters.input_ns),
                "compute_infer": _duration(count, counters.infer_ns),
                "compute_output": _duration(count, counters.output_ns),
                "cache_hit": _duration(0, 0),
                "cache_miss": _duration(0, 0),
            },
            "batch_stats": [],
        }

    def _of(self, model: Key) -> _Counters:
        counters = self._counters.get(model)
        if counters is None:
            counters = self._counters[model] = _Counters(engine=self._engine_counts(*model))
        return counters


def summed(told: Sequence[Sequence[Json]]) -> list[Json]:
    """The entries of several workers as one's: those of the first, with what the others count of the same versions."""
    entries = {(each["name"], each["version"]): each for each in told[0]}
    for each in chain(*told[1:]):
        key = each["name"], each["version"]
        if key in entries:
            entries[key] = _added(entries[key], each)
    return list(entries.values())


def _added(one: Json, other: Json) -> Json:
    stats, others = one["inference_stats"], other["inference_stats"]
    return one | {
        "last_inference": max(one["last_inference"], other["last_inference"]),
        "inference_count": one["inference_count"] + other["inference_count"],
        "execution_count": one["execution_count"] + other["execution_count"],
        "inference_stats": {
            name: _duration(stats[name]["count"] + others[name]["count"], stats[name]["ns"] + others[name]["ns"])
            for name in stats
        },
    }


def _duration(count: int, ns: int) -> Json:
    return {"count": count, "ns": ns}
