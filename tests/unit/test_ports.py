"""Ports of servers and engines that start side by side."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lion_ray.config import ServeConfig
from lion_ray.core.errors import EndpointError
from lion_ray.inference.ports import first_port, free_port, port_was_taken
from lion_ray.inference.server import MAX_STARTS, ModelServer

SERVES = """
import http.server, sys
class Yes(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-type", "application/json"); self.end_headers()
        self.wfile.write(b'{"data": [{"id": "m"}]}')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Yes).serve_forever()
"""
TAKEN = "import sys; sys.exit('OSError: [Errno 98] Address already in use')"
BROKEN = "import sys; sys.exit('ValueError: no such model')"


class Starts(ModelServer):
    """A server whose attempts to start run these programs, one after another."""

    def __init__(self, folder: Path, *programs: str, port: int | None = None) -> None:
        super().__init__(ServeConfig(model="m"), str(folder), "m", port=port)
        self.programs, self.ports = list(programs), list[int]()

    def command(self, port: int) -> list[str]:
        self.ports.append(port)
        return [sys.executable, "-c", self.programs.pop(0), str(port)]


async def test_a_server_whose_port_was_taken_starts_with_another(tmp_path: Path) -> None:
    server, said = Starts(tmp_path, TAKEN, SERVES), list[str]()
    try:
        base_url = await server.start(said.append)
    finally:
        server.stop()
    assert base_url == f"http://127.0.0.1:{server.ports[1]}/v1"
    assert "another process took a port of the server for m; starting it with others" in said


@pytest.mark.parametrize(
    ("programs", "port", "attempts"),
    [([TAKEN] * (MAX_STARTS + 1), None, MAX_STARTS), ([BROKEN, SERVES], None, 1), ([TAKEN, SERVES], 1234, 1)],
)
async def test_other_failures_and_ports_that_the_user_chose_are_final(
    tmp_path: Path, programs: list[str], port: int | None, attempts: int
) -> None:
    server = Starts(tmp_path, *programs, port=port)
    try:
        with pytest.raises(EndpointError, match="the server for m ended"):
            await server.start(lambda _: None)
    finally:
        server.stop()
    assert len(server.ports) == attempts


@pytest.mark.parametrize("said", ['{"data": [{"id": "other"}]}', "{}", "[1]", "no JSON"])
async def test_whoever_else_answers_at_the_port_is_not_the_server(tmp_path: Path, said: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=said, content_type="application/json")

    app = web.Application()
    app.router.add_get("/v1/models", answer)
    async with TestServer(app) as stranger:
        server = Starts(tmp_path, TAKEN, port=stranger.port)
        try:
            with pytest.raises(EndpointError, match="the server for m ended"):
                await server.start(lambda _: None)
        finally:
            server.stop()


def test_ports_are_free_and_each_another() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(30_000 <= one < 32_768 for one in ports)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", ports[0]))


def test_processes_that_follow_each_other_look_for_ports_in_different_places() -> None:
    found = {int(first_port(pid)) for pid in range(4000, 4008)}
    assert len(found) == 8
    assert all(20_000 <= one < 30_000 for one in found)


def test_what_logs_say_of_a_taken_port() -> None:
    assert port_was_taken(["INFO", "torch.distributed.DistNetworkError: ... error: EADDRINUSE"])
    assert not port_was_taken(["OSError: [Errno 28] No space left on device"])
