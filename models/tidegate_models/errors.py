"""The one error that a person running a training can cause: its message is a single line that says what to change."""

from __future__ import annotations


class TrainingInputError(ValueError):
    """A recipe, a data file or a run directory that cannot be used."""
