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
from bench.rows.stepping import SESSIONS, Way, against_echo, oip, or_by_cpu
from bench.sessions import MODEL

_OR = "or server CPU per step ≤ the echo's + the raw run's + 10 µs"
UNARY = Goal(f"≥ 0.65 of the bare grpc.aio echo, {_OR}", 0.65)
STREAM = Goal(f"≥ 0.55 of the bare bidirectional echo, {_OR}", 0.55)


def oip_infer_64(plan: Plan) -> Iterator[Row]:
    """`ModelInfer`, a call a step: on grpcio's server, and on the native front."""
    yield _row("oip-infer-64", plan, "infer", UNARY)
    native = ("--native-grpc", "127.0.0.1:0")
    row = against_echo("oip-infer-64-native", plan, _way("infer"), UNARY, ("grpc_echo",), flags=native)
    yield or_by_cpu(row, plan.seconds)


def oip_stream_64(plan: Plan) -> Iterator[Row]:
    """`ModelStreamInfer`, a stream a sequence."""
    yield _row("oip-stream-64", plan, "infer-stream", STREAM, "--streaming")


def _row(name: str, plan: Plan, mode: Mode, goal: Goal, *way: str) -> Row:
    def beside(serving: Running) -> Mapping[str, Any]:
        return perf_analyzer.figures(serving, SESSIONS, plan.seconds, *way)

    return or_by_cpu(against_echo(name, plan, _way(mode), goal, ("grpc_echo",), beside=beside), plan.seconds)


def _way(mode: Mode) -> Way:
    return Way(mode, oip, {"model": MODEL})
