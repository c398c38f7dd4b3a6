"""The OpenAI server that a run starts: real vLLM on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from lion_ray.config import EndpointConfig, ServeConfig
from lion_ray.errors import EndpointError
from lion_ray.gateway.calls import Call, Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.guard import start_time
from lion_ray.inference.server import ModelServer
from tests.tiny import make_tiny_model

SERVE = ServeConfig(
    model="tiny", dtype="float32", max_model_len=128, max_num_seqs=4, kv_cache_gib=1, enforce_eager=True
)


async def test_a_server_answers_and_stops(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "tiny", initializer_range=0.5)
    said: list[str] = []
    server = ModelServer(SERVE, str(tmp_path / "tiny"), "tiny")
    try:
        base_url = await server.start(said.append)
        assert base_url.startswith("http://127.0.0.1:")
        endpoint = EndpointConfig(model="tiny", api_key_env=None, serve=SERVE)
        journal = Journal.open(str(tmp_path / "journal"))
        client = Client("local", endpoint, journal, base_url=base_url)
        call = Call(messages=({"role": "user", "content": "Describe item 1."},), max_tokens=8, role="teacher")
        outcome = await client.complete(call)
        assert isinstance(outcome, Completion)
        assert outcome.completion_tokens <= 8
        assert isinstance(again := await client.complete(call), Completion)
        assert again.replayed
        await client.close()
        await journal.close()
        pid = server.pid
        assert server.alive()
    finally:
        server.stop()
    assert not server.alive()
    assert start_time(pid) is None


async def test_a_server_that_cannot_start_quotes_its_log(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    server = ModelServer(SERVE, str(tmp_path), "broken")
    try:
        with pytest.raises(EndpointError, match="the server for broken ended"):
            await server.start(lambda _: None)
    finally:
        server.stop()
