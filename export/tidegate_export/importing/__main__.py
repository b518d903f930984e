"""The process inside the sandbox: the command line comes as JSON on stdin, what to tell goes as JSON to stdout."""

from __future__ import annotations

import json
import sys

from tidegate_export.importing.command import run

if __name__ == "__main__":
    told, is_done = run(json.load(sys.stdin))
    json.dump({"told": told, "is_done": is_done}, sys.stdout)
