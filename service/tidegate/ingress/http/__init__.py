"""The HTTP ingress: JSON routes, server-sent events, WebSocket streams, health and metrics."""
