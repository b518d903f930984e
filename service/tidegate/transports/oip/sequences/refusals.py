"""Why a request of a sequence is refused, in words that its client understands."""

from __future__ import annotations

from tidegate.errors import InvalidInputError, SessionEndedError, TidegateError
from tidegate.transports.oip.sequences.core import SequenceStep
from tidegate.transports.oip.sequences.ids import Key
from tidegate.transports.oip.sequences.line import Run


def check_fit(step: SequenceStep, run: Run) -> None:
    if len(step.rows) != len(run.sessions):
        raise InvalidInputError(
            f"{step.key} was started with a batch of {len(run.sessions)} rows, this one has {len(step.rows)}",
            reason="WRONG_BATCH",
        )
    if step.version and step.version != run.version:
        raise InvalidInputError(f"{step.key} runs on version {run.version}, not {step.version}", reason="WRONG_VERSION")


def not_started(key: Key) -> InvalidInputError:
    return InvalidInputError(
        f"{key} is not running: its first request must specify the START flag", reason="SEQUENCE_NOT_STARTED"
    )


def over(key: Key, error: TidegateError) -> TidegateError:
    """What a request is told whose sequence has ended by itself."""
    if not isinstance(error, SessionEndedError):
        return not_started(key)
    if error.message.startswith(f"{key} has ended: "):
        return error
    why = error.message.partition(": ")[2]
    return SessionEndedError(
        f"{key} has ended: {why}; to begin it anew a request must specify the START flag", reason=error.reason
    )
