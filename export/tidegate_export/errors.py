"""What can go wrong in an export, told to the user in one sentence."""

from __future__ import annotations


class ExportError(Exception):
    """The model cannot be exported, or the request does not fit it; the message is the reason, on one line."""
