"""Adds services to a server with requests that are parsed within bounds, by `wire.parsing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc

from tidegate.wire.parsing import deserializer


class _Handlers:
    """Stands where the generated code wants a server, and takes what that is given."""

    def __init__(self) -> None:
        self.name = ""
        self.methods: dict[str, Any] = {}

    def add_registered_method_handlers(self, name: str, methods: dict[str, Any]) -> None:
        self.name, self.methods = name, methods

    def add_generic_rpc_handlers(self, _: object) -> None:
        """They are the same methods."""


def add_service(
    add: Callable[[Any, Any], None], servicer: object, server: Any, others: Mapping[str, Any] | None = None
) -> None:
    """Let the server answer a service's methods.

    Args:
        add: The generated ``add_…Servicer_to_server``.
        servicer: What answers; its methods find by `wire.parsing.parsed` whether a request could be parsed.
        server: Takes the handlers.
        others: Handlers in place of some methods', by their names.
    """
    generated = _Handlers()
    add(servicer, generated)
    methods = {name: _bounded(handler) for name, handler in generated.methods.items()} | dict(others or {})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(generated.name, methods),))
    server.add_registered_method_handlers(generated.name, methods)


def _bounded(handler: Any) -> Any:
    # The generated code names the message's own `FromString`, of which Python tells the class.
    return handler._replace(request_deserializer=deserializer(handler.request_deserializer.__self__))
