"""What docs/client.md shows runs."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle
from tests.service.grpc_server import GrpcServer
from tidegate.config import load_settings
from tidegate.service import Service

DOCUMENT = Path(__file__).parents[3] / "docs" / "client.md"


async def test_the_examples_run(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, "shakespeare-lstm")
    write_tiny_forecast_bundle(tmp_path, "load-lstm")
    service = Service(load_settings({"bundles": tmp_path, "store": "none"}))
    await service.start()
    server = GrpcServer(service, "127.0.0.1:0")
    await server.start()
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    code = "\n".join(blocks).replace("127.0.0.1:8081", f"127.0.0.1:{server.port}")
    # As its reader would: in a process of its own.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    printed, err = await process.communicate()
    out = printed.decode()
    await server.stop()
    await service.stop()
    assert (process.returncode, err) == (0, b"")
    assert "load-lstm 1 forecast" in out
    assert "(length at 46)" in out
    assert "[0, 2] [2, 4] {}" in out
    assert "3 5 3\n" in out
    assert "3 ('start',)" in out
