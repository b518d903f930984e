"""The one error that a person running a training can cause: its message is a single line that says what to change."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

_MOST_LISTED = 10


class TrainingInputError(ValueError):
    """A recipe, a data file or a run directory that cannot be used."""


def known_names(name: str, known: Sequence[str], has: str) -> str:
    """Return the end of a message about an unknown name: which was probably meant, and the first ten there are.

    `tidegate.errors.known_names` does the same for the service, which this package does not import.
    """
    more = len(known) - _MOST_LISTED
    names = (", ".join(known[:_MOST_LISTED]) or "none") + (f" and {more} more" if more > 0 else "")
    match get_close_matches(name, known, 1):
        case [meant]:
            return f": did you mean {meant!r}? {has[0].upper()}{has[1:]} {names}"
        case _:
            return f": {has} {names}"
