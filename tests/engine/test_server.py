"""The OpenAI server that a run starts, and the one of its student: real vLLM on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from lion_ray.config import EndpointConfig, ServeConfig
from lion_ray.core.errors import EndpointError
from lion_ray.core.process_guard import command_line, descendants, start_time
from lion_ray.core.store import RunStore
from lion_ray.gateway.calls import Call, Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.inference.kept_server import KeptServer
from lion_ray.inference.served_model import patient
from lion_ray.inference.server import ModelServer
from lion_ray.models.machine import multiplies_int8, speeds
from lion_ray.models.prompter import Prompter
from lion_ray.models.quantize import served_folder
from lion_ray.models.resolve import cache_folder
from tests.tiny import make_tiny_model


def fresh_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, apart from what is known of this machine's speed."""
    speeds()
    known = list(cache_folder().glob("machine-*.json"))
    monkeypatch.setenv("LION_RAY_CACHE", str(folder))
    folder.mkdir()
    for file in known:
        shutil.copy2(file, folder)


SERVE = ServeConfig(
    model="tiny", dtype="float32", max_model_len=128, max_num_seqs=4, kv_cache_gib=1, enforce_eager=True
)


async def test_a_server_answers_tells_what_it_does_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the demo's: weights in 8 bits, the type of numbers left to the machine, the model's own chat template."""
    fresh_cache(tmp_path / "cache", monkeypatch)
    make_tiny_model(tmp_path / "tiny", initializer_range=0.5)
    serve = ServeConfig(model="tiny", quantization="int8", max_model_len=128, max_num_seqs=4, kv_cache_gib=0.1)
    said: list[str] = []
    server = ModelServer(serve, str(served_folder(serve, tmp_path, said.append)), "tiny")
    kept = KeptServer(server, said.append)
    try:
        base_url = await kept.start()
        assert base_url.startswith("http://127.0.0.1:")
        endpoint = EndpointConfig(model="tiny", api_key_env=None, serve=serve)
        journal = Journal.open(str(tmp_path / "journal"))
        client = Client("local", patient(endpoint), journal, base_url=base_url, served=True)
        call = Call(messages=({"role": "user", "content": "Describe item 1."},), max_tokens=8, role="teacher")
        outcome = await kept.during(client.complete(call))
        assert isinstance(outcome, Completion)
        assert outcome.completion_tokens <= 8
        assert isinstance(again := await client.complete(call), Completion)
        assert again.replayed
        await client.close()
        await journal.close()
        while (counts := await server.counts()) is None or not counts.finished:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
        assert (counts.read, counts.written) == (outcome.prompt_tokens, outcome.completion_tokens)
        assert (counts.running, counts.queued) == (0, 0)
        pid = server.pid
        assert server.alive()
        chosen = "CPUInt8ScaledMMLinearKernel" if multiplies_int8() else "FbgemmInt8LinearKernel"
        assert f"Selected {chosen}" in server.log_path.read_text()
    finally:
        await kept.stop()
    assert not server.alive()
    assert start_time(pid) is None
    assert await server.counts() is None


@pytest.mark.long
async def test_a_server_that_cannot_start_quotes_its_log(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    server = ModelServer(SERVE, str(tmp_path), "broken")
    try:
        with pytest.raises(EndpointError, match="the server for broken ended"):
            await server.start(lambda _: None)
    finally:
        server.stop()


@pytest.mark.long
async def test_a_runs_student_is_served_to_those_with_the_key(tmp_path: Path) -> None:
    """`lion-ray serve`, from a run folder; the student was trained with the paper's frame."""
    store = RunStore(str(tmp_path / "run"))
    store.claim()
    student = {"model": "none", "prompt": "instruction", "dtype": "float32", "max_model_len": 128, "max_num_seqs": 4}
    config = {
        "run_name": "tiny",
        "data": {"pool": "pool.jsonl"},
        "endpoints": {"default": {"model": "m"}},
        "student": student | {"enforce_eager": True},
    }
    store.write_json("run.json", {"config": config, "base_dir": str(tmp_path)})
    make_tiny_model(Path(store.path("iteration-1/checkpoint/model")), initializer_range=0.5)
    store.stage("iteration-1/checkpoint").commit({})
    key = "sk-serve-canary"
    command = [sys.executable, "-m", "lion_ray", "serve", store.root, "--api-key-env", "SERVE_KEY"]
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen(  # noqa: ASYNC220 - returns at once, and is polled below
            command, stdout=log, stderr=log, env=os.environ | {"SERVE_KEY": key}
        )
    try:
        while "answers at" not in (said := (tmp_path / "log").read_text()):
            assert serving.poll() is None, said
            await asyncio.sleep(0.1)
        base_url = said.split("answers at ")[1].split()[0]
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Describe item 1."}], "max_tokens": 4}
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{base_url}/chat/completions", json=body) as response:
                assert response.status == 401
            authorization = {"Authorization": f"Bearer {key}"}
            async with session.post(f"{base_url}/chat/completions", json=body, headers=authorization) as response:
                answer = await response.json()
        assert answer["usage"]["completion_tokens"] <= 4
        expected = Prompter.load(store.path("iteration-1/checkpoint/model"), "instruction")
        assert answer["usage"]["prompt_tokens"] == len(expected.prompt_ids("Describe item 1."))
        assert key not in said
        children = descendants(serving.pid)
        assert all(key.encode() not in command_line(pid) for pid in children)
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait()
    assert serving.returncode == 0
    # All the server's are gone with it; a helper of the command's own (Python's resource tracker) goes just after it.
    while lasting := [command_line(pid) for pid in children if start_time(pid)]:
        assert not any(b"vllm" in line.lower() for line in lasting), lasting
        await asyncio.sleep(0.05)
