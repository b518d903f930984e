"""Dashboards as files."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import engine, quality, service, sessions

FOLDER = Path(__file__).parent / "dashboards"


def texts() -> dict[str, str]:
    """Return the text of every dashboard by the name of its file."""
    boards = (service.board(), engine.board(), sessions.board(), quality.board())
    return {f"{board.uid}.json": json.dumps(board, cls=JSONEncoder, indent=1) + "\n" for board in boards}
