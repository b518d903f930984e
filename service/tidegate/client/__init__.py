"""The Python client, over gRPC: `Client` for plain code, `AsyncClient` for asyncio.

Results are the types of `tidegate.api`, errors those of `tidegate.errors`, rebuilt from what the server says.
The asyncio client in `_async` is written by hand; `tools/sync_client.py` generates `_sync` from it.
"""

from __future__ import annotations

from tidegate.client import forks  # noqa: F401 - before grpc is imported
from tidegate.client._async.client import AsyncClient
from tidegate.client._async.columns import AsyncColumnStream
from tidegate.client._async.session import AsyncSession, AsyncSessionStream
from tidegate.client._sync.client import Client
from tidegate.client._sync.columns import ColumnStream
from tidegate.client._sync.session import Session, SessionStream
from tidegate.client.audio import read_wav
from tidegate.client.retry import Retry
from tidegate.client.send_window import ReplyLostError
from tidegate.client.tls import Tls
from tidegate.wire.columns import AttachResult, ColumnsResult

__all__ = [
    "AsyncClient",
    "AsyncColumnStream",
    "AsyncSession",
    "AsyncSessionStream",
    "AttachResult",
    "Client",
    "ColumnStream",
    "ColumnsResult",
    "ReplyLostError",
    "Retry",
    "Session",
    "SessionStream",
    "Tls",
    "read_wav",
]
