"""The Python client, over gRPC: `Client` for plain code, `AsyncClient` for asyncio.

Results are the types of `tidegate.api`, errors those of `tidegate.errors`, rebuilt from what the server says.
"""

from __future__ import annotations

from tidegate.client import forks  # noqa: F401 - before grpc is imported
from tidegate.client.aio import AsyncClient
from tidegate.client.aio_columns import AsyncColumnStream
from tidegate.client.aio_session import AsyncSession
from tidegate.client.aio_stream import AsyncSessionStream
from tidegate.client.columns import ColumnStream
from tidegate.client.flight import ReplyLostError
from tidegate.client.retry import Retry
from tidegate.client.session import Session
from tidegate.client.stream import SessionStream
from tidegate.client.sync import Client
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
]
