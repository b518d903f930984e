"""tidegate serves recurrent sequence models with their state."""

from __future__ import annotations

__version__ = "0.1.0"
