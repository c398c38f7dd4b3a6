"""Clients of a stub endpoint, over real HTTP on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lion_ray.config import EndpointConfig
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from tests.stub_api import StubAPI


@pytest_asyncio.fixture
async def stub() -> AsyncIterator[StubAPI]:
    async with StubAPI() as server:
        yield server


@pytest_asyncio.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal.open(str(tmp_path / "journal"))
    yield opened
    await opened.close()


@pytest.fixture(params=["aiohttp", "openai"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both HTTP clients: one contract, one suite."""
    return str(request.param)


@pytest_asyncio.fixture
async def connect(stub: StubAPI, journal: Journal, transport: str) -> AsyncIterator[Callable[..., Client]]:
    """Make clients of the stub: Client's own options by name, the config's as `settings`. Closed at the end."""
    clients: list[Client] = []

    def make(settings: dict[str, Any] | None = None, **options: Any) -> Client:
        known: dict[str, Any] = {"model": "stub-model", "api_key_env": None, "transport": transport}
        config = EndpointConfig(**(known | (settings or {})))
        defaults: dict[str, Any] = {"journal": journal, "base_url": stub.base_url}
        clients.append(Client("default", config, **(defaults | options)))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()
