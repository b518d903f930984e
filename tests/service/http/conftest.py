"""An application around a scripted service, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from tests.service.http.scripted import ScriptedCore
from tidegate.transports.http.app import create_app


@pytest.fixture
async def service() -> ScriptedCore:
    return ScriptedCore()


@pytest.fixture
def app(service: ScriptedCore) -> FastAPI:
    return create_app(service)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
