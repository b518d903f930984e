"""What clients speak: gRPC, HTTP, WebSocket and the Open Inference Protocol, over one ASGI application."""
