"""The course of one piece of work through the engine, noted for a trace; made only where its request is traced.

Plain times in monotonic seconds. Who began the trace makes spans of them when the request is over.
"""

from __future__ import annotations

from contextvars import ContextVar

from tidegate.limits import MAX_COURSES


class Course:
    """When the work arrived, ran and was stored.

    Attributes:
        arrived: When the engine took it.
        first_run: When its first run began; None: it never ran.
        last_run: When its last run ended.
        run_seconds: Inside onnxruntime, all runs together.
        num_runs: Pieces, or sampled tokens, that it ran in.
        num_rows: Rows of the largest of these runs.
        num_steps: Steps of its own.
        stored: When its last commit began and ended; None: nothing of it was stored.
        num_commits: To the store.
    """

    __slots__ = (
        "arrived", "first_run", "last_run", "num_commits", "num_rows", "num_runs", "num_steps", "run_seconds", "stored"
    )  # fmt: skip

    def __init__(self, arrived: float) -> None:
        self.arrived = arrived
        self.first_run: float | None = None
        self.last_run = arrived
        self.run_seconds = 0.0
        self.num_runs = self.num_rows = self.num_steps = self.num_commits = 0
        self.stored: tuple[float, float] | None = None

    def ran(self, began: float, ended: float, rows: int, steps: int) -> None:
        if self.first_run is None:
            self.first_run = began
        self.last_run = ended
        self.run_seconds += ended - began
        self.num_runs += 1
        self.num_rows = max(self.num_rows, rows)
        self.num_steps += steps

    def committed(self, began: float, ended: float) -> None:
        self.stored = began, ended
        self.num_commits += 1


COURSES: ContextVar[list[Course] | None] = ContextVar("tidegate_courses", default=None)
"""Where the work that is submitted now is noted; None, the default: nowhere."""


def begin_course(now: float) -> Course | None:
    """Return a course for work that arrives now, if its request is traced."""
    courses = COURSES.get()
    if courses is None or len(courses) >= MAX_COURSES:
        return None
    course = Course(now)
    courses.append(course)
    return course
