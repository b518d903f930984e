"""Stock clients of Node: gRPC by grpc-js and Connect, gRPC-Web by Connect and by Google's own, binary and text."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, empty_pb2, struct_pb2, wrappers_pb2

from tests.programs import program
from tests.service.transports.interop import Interop, on_adapter

CLIENTS = Path(__file__).parent / "clients"
SIZES = [31415, 9, 2653, 58979]
MESSAGE = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
NATIVE = ["grpc-js", "connect-grpc", "connect-grpc-gzip"]
WEB = ["connect-web", "connect-web-http2", "fetch-web", "grpc-web-text", "grpc-web-binary"]


@pytest.fixture(scope="module")
def packages() -> Path:
    """The clients' folder, with their packages as its lock file has them."""
    installed = CLIENTS / "node_modules/.package-lock.json"
    lock = CLIENTS / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        command = [program("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=CLIENTS, check=True, capture_output=True)
        installed.touch()
    return CLIENTS


@pytest.fixture
def descriptors(tmp_path: Path) -> Path:
    """The service of tests/service/transports/interop.py, which has no .proto file, as a FileDescriptorSet."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (empty_pb2, struct_pb2, wrappers_pb2):
        files.file.add().ParseFromString(module.DESCRIPTOR.serialized_pb)
    own = files.file.add(name="test.proto", package="test", syntax="proto3")
    own.dependency.extend([file.name for file in files.file[:-1]])
    service = own.service.add(name="Interop")
    for name, request, reply, client_streaming, server_streaming in (
        ("Empty", "Empty", "Empty", False, False),
        ("Unary", "Struct", "BytesValue", False, False),
        ("Output", "Struct", "BytesValue", False, True),
        ("Flood", "Struct", "BytesValue", False, True),
        ("Input", "BytesValue", "Int64Value", True, False),
        ("Duplex", "Struct", "BytesValue", True, True),
    ):
        service.method.add(
            name=name,
            input_type=f".google.protobuf.{request}",
            output_type=f".google.protobuf.{reply}",
            client_streaming=client_streaming,
            server_streaming=server_streaming,
        )
    path = tmp_path / "descriptors"
    path.write_bytes(files.SerializeToString())
    return path


async def run(packages: Path, client: str, address: str, descriptors: Path) -> dict[str, Any]:
    """What the client found."""
    process = await asyncio.create_subprocess_exec(
        program("node"), "interop.mjs", client, address, str(descriptors), cwd=packages, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return dict(json.loads(out))


@pytest.mark.parametrize("client", NATIVE + WEB)
async def test_a_client_finds_what_it_asked_for(packages: Path, descriptors: Path, client: str) -> None:
    servicer = Interop()
    async with on_adapter(servicer) as (_, served):
        found = await run(packages, client, served.address, descriptors)
        assert found["unary"] == [314159]
        assert found["compressed"] == [314159]
        assert found["many"] == list(range(100))
        assert found["output"] == SIZES
        assert found["nothing"] == []
        assert found["status"] == {"code": "NOT_FOUND", "message": MESSAGE}
        assert found["streamStatus"] == {"code": "ABORTED", "message": MESSAGE}
        assert found["deadline"] == "DEADLINE_EXCEEDED"
        assert found.get("metadata", {"initial": "test_initial", "trailing": "Cgv/"}) == {
            "initial": "test_initial",
            "trailing": "Cgv/",
        }
        if client in NATIVE:
            assert found["duplex"] == SIZES
        await servicer.cancelled.wait()
