"""Generates the blocking client from the one for asyncio: service/tidegate/client/_sync from _async.

Words are replaced by the table below; ruff removes imports that are left over, and formats. A definition, decorator or
statement whose first line ends with ``# async only`` is left out. With ``--check`` nothing is written: it fails if the
files are not up to date.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[1] / "service/tidegate/client"
MARK = "# async only"
WORDS = [
    (r"  # noqa: ASYNC\d+.*", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAwaitable\[([\w.]+)\]", r"\1"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclosing\b", "closing"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bimport asyncio\b", "import time"),
    (r"\baio\.(?=Unary)", "grpc."),
    (r"\bgrpc_async\b", "grpc_sync"),
    (r"\b_async\b", "_sync"),
]


def generate(source: Path) -> str:
    """Return the blocking twin of an asyncio module."""
    text = source.read_text()
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt | ast.expr) and lines[node.lineno - 1].rstrip().endswith(MARK):
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno + 1)
    text = "".join(lines)
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    header = (
        f"# Generated from ../_async/{source.name} by tools/sync_client.py: edit that file, then `make sync-client`.\n"
    )
    name = f"--stdin-filename={CLIENT / '_sync' / source.name}"
    for command in (["check", "--fix", "--quiet", name], ["format", "--quiet", name]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "-"], input=text, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
    return header + text


def main() -> None:
    sources = sorted(path for path in (CLIENT / "_async").glob("*.py") if path.name != "__init__.py")
    generated = {CLIENT / "_sync" / source.name: generate(source) for source in sources}
    if "--check" not in sys.argv:
        for target, text in generated.items():
            target.write_text(text)
    elif stale := [
        target.name for target, text in generated.items() if not target.exists() or target.read_text() != text
    ]:
        sys.exit(f"service/tidegate/client/_sync is not up to date ({', '.join(stale)}): run make sync-client")


if __name__ == "__main__":
    main()
