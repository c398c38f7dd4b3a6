"""A server of our own that exits by itself is started again, and what waits for it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from lion_ray.config import EndpointConfig, ServeConfig
from lion_ray.core.errors import EndpointError
from lion_ray.core.process_guard import start_time
from lion_ray.gateway.calls import Call, Completion
from lion_ray.gateway.client import Client
from lion_ray.gateway.journal import Journal
from lion_ray.inference.kept_server import MOST_RESTARTS, KeptServer
from lion_ray.inference.served_model import patient
from lion_ray.inference.server import ModelServer

SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({"data": [{"id": "m"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if CRASH:
            print("RuntimeError: no such kernel", flush=True)
            os._exit(3)
        message = {"role": "assistant", "content": "answer " + str(os.getpid())}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        self.reply({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                    "usage": usage})

    def reply(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Small(ModelServer):
    """A server of few lines instead of vLLM's."""

    crash = False

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", SERVER.replace("CRASH", str(self.crash)), str(port)]


class Crashing(Small):
    crash = True


SERVE = ServeConfig(model="m", dtype="float32", max_num_seqs=4)
ENDPOINT = patient(EndpointConfig(model="m", api_key_env=None, serve=SERVE))


def call(text: str) -> Call:
    return Call(messages=({"role": "user", "content": text},), max_tokens=8, role="teacher")


async def opened(kept: KeptServer, folder: Path) -> tuple[Client, Journal]:
    journal = Journal.open(str(folder / "journal"))
    return Client("local", ENDPOINT, journal, base_url=await kept.start(), served=True), journal


async def test_a_killed_server_is_started_again_at_its_address(tmp_path: Path) -> None:
    said: list[str] = []
    kept = KeptServer(Small(SERVE, str(tmp_path), "m"), said.append)
    client, journal = await opened(kept, tmp_path)
    try:
        address, pid = kept.server.base_url, kept.server.pid
        assert isinstance(first := await kept.during(client.complete(call("one"))), Completion)
        assert first.text == f"answer {pid}"
        os.kill(pid, signal.SIGKILL)
        assert isinstance(second := await kept.during(client.complete(call("two"))), Completion)
        assert (second.text, kept.server.base_url) == (f"answer {kept.server.pid}", address)
        assert kept.server.pid != pid
        assert [line for line in said if line.endswith("starting it again")] == [
            f"the server for m ended (SIGKILL): {last_line(kept.server.log_path.with_name('server-1.log'))}; "
            "starting it again"
        ]
        await client.close()
    finally:
        await kept.stop()
        await journal.close()
    assert start_time(kept.server.pid) is None


def last_line(log: Path) -> str:
    line = log.read_text().strip().splitlines()[-1]
    return f"{line} (log: {log.with_name('server.log')})"


async def test_a_server_that_dies_of_every_call_is_given_up_with_its_words(tmp_path: Path) -> None:
    said: list[str] = []
    kept = KeptServer(Crashing(SERVE, str(tmp_path), "m"), said.append)
    client, journal = await opened(kept, tmp_path)
    try:
        waiting = [asyncio.ensure_future(kept.during(client.complete(call(text)))) for text in ("one", "two")]
        for one in waiting:
            with pytest.raises(EndpointError, match=r"the server for m ended \(exit code 3\): RuntimeError: no such k"):
                await one
        assert len([line for line in said if line.endswith("starting it again")]) == MOST_RESTARTS
        with pytest.raises(EndpointError, match=f"also after {MOST_RESTARTS} restarts"):
            await kept.during(client.complete(call("three")))
        await client.close()
    finally:
        await kept.stop()
        await journal.close()


async def test_what_is_done_meanwhile_fails_as_it_would(tmp_path: Path) -> None:
    kept = KeptServer(Small(SERVE, str(tmp_path), "m"), lambda _: None)

    async def fails() -> None:
        raise ValueError("of its own")

    try:
        await kept.start()
        with pytest.raises(ValueError, match="of its own"):
            await kept.during(fails())
    finally:
        await kept.stop()
