"""The HTTP transport: JSON routes, server-sent events, WebSocket streams, health and metrics."""
