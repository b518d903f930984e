"""What happens again and again is logged once in a while, with how often it happened since."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

_MOST = 1024


class Throttle:
    """Lets each kind of event through once in ``seconds``. Remembers the kinds that came last, a thousand of them.

    Args:
        seconds: How long the next of a kind is held back.
        clock: Monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._kinds: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def let_through(self, kind: Hashable) -> int | None:
        """Return how many of the kind were held back since the last that came through; None: so is this one."""
        now = self._clock()
        until, held = self._kinds.pop(kind, (now, 0))
        if now < until:
            self._kinds[kind] = until, held + 1
            return None
        self._kinds[kind] = now + self._seconds, 0
        if len(self._kinds) > _MOST:
            self._kinds.popitem(last=False)
        return held
