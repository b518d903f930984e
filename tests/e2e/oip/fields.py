"""Prints, as JSON, every message, field, enum and method of the stubs that tritonclient ships, or of ours.

`fields.py MODULE…`: the modules with the files of package `inference`. Two such cannot live in one process.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from google.protobuf import descriptor_pb2


def described(modules: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in modules:
        file = descriptor_pb2.FileDescriptorProto()
        importlib.import_module(name).DESCRIPTOR.CopyToProto(file)
        assert file.package == "inference"
        for enum in file.enum_type:
            found[enum.name] = {value.name: value.number for value in enum.value}
        for message in file.message_type:
            _describe(found, "", message)
        for service in file.service:
            for method in service.method:
                found[f"{service.name}.{method.name}"] = {
                    "input": method.input_type,
                    "output": method.output_type,
                    "streams": [method.client_streaming, method.server_streaming],
                }
    return found


def _describe(found: dict[str, Any], prefix: str, message: Any) -> None:
    name = prefix + message.name
    found[name] = {}
    for field in message.field:
        group = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        found[name][field.name] = [field.number, field.type, field.label, field.type_name, group]
    for enum in message.enum_type:
        found[f"{name}.{enum.name}"] = {value.name: value.number for value in enum.value}
    for nested in message.nested_type:
        _describe(found, f"{name}.", nested)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(described(sys.argv[1:])))
