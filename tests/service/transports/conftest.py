"""Servers of the interoperability cases, and stubs of stock clients."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from grpc import aio

from tests.service.transports.interop import Interop, Stub, on_adapter, on_grpcio


@pytest.fixture
async def servicer() -> Interop:
    return Interop()


@pytest.fixture
async def adapter_address(servicer: Interop) -> AsyncIterator[str]:
    async with on_adapter(servicer) as (_, served):
        yield served.address


@pytest.fixture(params=["adapter", "grpcio"])
async def address(servicer: Interop, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Where the servicer is, behind the adapter and behind grpc.aio's own server: both are to do the same."""
    if request.param == "adapter":
        async with on_adapter(servicer) as (_, served):
            yield served.address
    else:
        async with on_grpcio(servicer) as address:
            yield address


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Stub]:
    async with aio.insecure_channel(address) as channel:
        yield Stub(channel)


@pytest.fixture
async def adapter_stub(adapter_address: str) -> AsyncIterator[Stub]:
    async with aio.insecure_channel(adapter_address) as channel:
        yield Stub(channel)
