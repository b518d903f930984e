"""The Open Inference Protocol's steps over gRPC: sequences with integer ids, one token a message, a start on the first.

The client writes requests as stock clients do (raw bytes, three parameters); the echo takes and gives these messages.
perf_analyzer's own figures stand in the details: it is a client of another kind, with many threads on the same cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench import perf_analyzer
from bench.client import Mode
from bench.measure import Goal, Plan, Row
from bench.processes import Running
from bench.rows.stepping import SESSIONS, CpuRule, Way, against_echo, oip, or_by_cpu
from bench.sessions import MODEL

UNARY_RULE, STREAM_RULE = CpuRule(share=0.4), CpuRule(more=5)
UNARY = Goal(f"≥ 2.2 times the bare grpc.aio echo, or {UNARY_RULE}", 2.2)
STREAM = Goal(f"≥ 0.70 of the bare bidirectional echo, or {STREAM_RULE}", 0.70)


def oip_infer_64(plan: Plan) -> Iterator[Row]:
    """`ModelInfer`, a call a step."""
    yield _row("oip-infer-64", plan, "infer", UNARY, UNARY_RULE)


def oip_stream_64(plan: Plan) -> Iterator[Row]:
    """`ModelStreamInfer`, a stream a sequence."""
    yield _row("oip-stream-64", plan, "infer-stream", STREAM, STREAM_RULE, "--streaming")


def _row(name: str, plan: Plan, mode: Mode, goal: Goal, rule: CpuRule, *way: str) -> Row:
    def beside(serving: Running) -> Mapping[str, Any]:
        return perf_analyzer.figures(serving, SESSIONS, plan.seconds, *way)

    return or_by_cpu(against_echo(name, plan, _way(mode), goal, ("grpc_echo",), beside=beside), rule, plan.seconds)


def _way(mode: Mode) -> Way:
    return Way(mode, oip, {"model": MODEL})
