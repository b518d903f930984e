"""Columnar streams: 256 sessions in a message, held against onnxruntime at batch 256."""

from __future__ import annotations

from collections.abc import Iterator

from bench.answers import check_answers
from bench.client import Figures, drive
from bench.floors.raw import Rate
from bench.measure import Goal, Plan, Rounds, Row, against, interleaved
from bench.metrics import read_counts
from bench.processes import server
from bench.raw import raw_steps
from bench.sessions import sessions

NAME = "columnar-256"
GOAL = Goal("≥ 0.88 of raw onnxruntime's rows/s at batch 256", 0.88)
LANES, STREAMS = 256, 2


def columnar_256(plan: Plan) -> Iterator[Row]:
    """Two streams, so that one's message is on its way while the other's is run; one stream stands in the details."""
    with server(*plan.flags_of(NAME)) as serving:

        def step_server(streams: int) -> Figures:
            load = plan.load | {"connections": streams, "lanes": LANES}
            with sessions(serving, streams * LANES) as ids:
                return drive("columnar", serving, load, ids)

        with sessions(serving, LANES) as ids:
            num_checked = check_answers("columnar", serving, ids, {"lanes": LANES})
        before = read_counts(serving)
        rounds: Rounds[Figures | Rate] = interleaved(
            plan.rounds,
            {
                "server": lambda: step_server(STREAMS),
                "floor": lambda: raw_steps(LANES, plan.seconds),
                "one stream": lambda: step_server(1),
            },
        )
        rows_per_run = read_counts(serving).since(before).rows_per_run
    yield against(
        NAME,
        "steps/s",
        GOAL,
        rounds,
        ("server", "floor"),
        lambda figures: figures.steps_per_s,
        server_us_per_step=rounds.median("server", _cpu),
        floor_us_per_step=rounds.median("floor", _cpu),
        one_stream_ratio=rounds.ratio("one stream", "floor", lambda figures: figures.steps_per_s).median,
        rows_per_run=rows_per_run,
        answers_checked=num_checked,
    )


def _cpu(figures: Figures | Rate) -> float:
    return figures.cpu_us_per_step if isinstance(figures, Rate) else figures.server_us_per_step
