"""The core's types as protobuf messages and back: inverse pairs, used by the gRPC transport and by the Python client.

Knows `tidegate.api`, `tidegate.errors` and the generated messages. Knows no server, channel or event loop.
"""

from __future__ import annotations

SESSION_KEY = "tidegate-session"
"""Metadata that names a call's session, for proxies to route by."""
