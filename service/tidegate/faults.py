"""Faults of ours: a caller is told a number and nothing else, the log has the cause under the same number.

The number stands for the place in the code, not for the request: so a fault that every request meets is one line in a
while (`observability.logs` sees to that), and who is told a number finds it.
"""

from __future__ import annotations

import hashlib
import logging
import traceback
from pathlib import PurePath

from tidegate.errors import InternalError, TidegateError, without_traceback

log = logging.getLogger(__name__)


def conceal(error: Exception, what: str = "a request failed") -> TidegateError:
    """Return the error that a caller may see: one of ours as it is, any other logged whole, and told by its number.

    Args:
        error: What was raised.
        what: What could not be done, for the log.
    """
    if isinstance(error, TidegateError):
        return without_traceback(error)
    number = fault_number(error)
    log.error("fault %s: %s", number, what, exc_info=error, extra={"fault": number})
    return InternalError(f"internal error: the server's log says more under fault {number}", details={"fault": number})


def fault_number(error: BaseException) -> str:
    """Return eight digits that name the kind of error and the line that raised it, whoever asked for that."""
    place: tuple[str, int] | None = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        place = PurePath(frame.f_code.co_filename).name, line
    return hashlib.sha256(repr((type(error).__name__, place)).encode()).hexdigest()[:8]
