"""When the requests of an open loop are due. Pure: numbers out of numbers, no clock.

Each sender has a schedule of its own, fixed before the first reply: a slow reply delays no due time, so the wait that
it causes to the requests behind it is part of their latencies. Measuring from when a request was at last sent would
leave that wait out, which is called coordinated omission (G. Tene, "How NOT to Measure Latency", 2013; wrk2 measures as
is done here).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

from tidegate.loadgen.load import Arrivals


def due_times(
    arrivals: Arrivals, rate: float, start: float, sender: int, num_senders: int, rng: random.Random
) -> Iterator[float]:
    """Endless rising due times of one of ``num_senders`` that together make ``rate`` requests a second from ``start``.

    Even senders take turns. Poisson ones draw exponential gaps; many such senders together are a Poisson process again.
    """
    period = num_senders / rate
    match arrivals:
        case Arrivals.EVEN:
            return (start + (sender / num_senders + turn) * period for turn in count())
        case Arrivals.POISSON:
            return _poisson(period, start, rng)


def _poisson(period: float, start: float, rng: random.Random) -> Iterator[float]:
    due = start
    while True:
        due += rng.expovariate(1 / period)
        yield due
