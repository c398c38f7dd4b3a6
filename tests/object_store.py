"""An S3 service on loopback, in a process of its own: moto's server, which speaks S3 over real HTTP.

``with s3_server() as environment`` gives the variables that lead every client there, with one bucket named BUCKET.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

BUCKET = "runs"
CODE = """
import signal, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    with subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        found = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            # No machine of a cloud to ask for credentials.
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        made = "import boto3, sys; boto3.client('s3').create_bucket(Bucket=sys.argv[1])"
        subprocess.run([sys.executable, "-c", made, BUCKET], check=True, env=os.environ | found)
        try:
            yield found
        finally:
            assert process.stdin is not None
            process.stdin.close()


@dataclass
class Moods:
    """A proxy before an S3 service that answers some requests with faults of its own, as the script says.

    A script is given a request's method, its path with its query, and its number from 0; it returns None to let the
    request through, or a fault: "500" and "503" (SlowDown) without asking the service, "cut" (no answer, and the
    service is not asked), "lost" (the service has done it, and no answer), "half" (half of the answer), "late" (the
    answer comes when `gate` is set).
    """

    behind: str
    script: Callable[[str, str, int], str | None] = lambda *_: None
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and fault of each request."""
    gate: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def faulty(self) -> int:
        return sum(fault is not None for _, _, fault in self.seen)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fault = self.script(request.method, request.raw_path, len(self.seen))
        self.seen.append((request.method, request.raw_path, fault))
        if fault in ("500", "503"):
            code = "SlowDown" if fault == "503" else "InternalError"
            said = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Please try again.</Message></Error>"
            return web.Response(status=int(fault), text=said, content_type="application/xml")
        if fault == "cut":
            return self._cut(request)
        async with (
            aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=("Content-Type",)) as session,
            session.request(
                request.method,
                URL(self.behind + request.raw_path, encoded=True),
                data=body if request.method in ("PUT", "POST") else None,
                headers={name: value for name, value in request.headers.items() if name.lower() not in _HOPS},
            ) as found,
        ):
            data = await found.read()
            headers = {name: value for name, value in found.headers.items() if name.lower() not in _HOPS}
        if fault == "late":
            await asyncio.to_thread(self.gate.wait)
        if fault == "lost":
            return self._cut(request)
        if request.method == "HEAD":
            response = web.StreamResponse(status=found.status, headers=found.headers)
            await response.prepare(request)
            return response
        if fault == "half":
            response = web.StreamResponse(status=found.status, headers=headers | {"Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            return self._cut(request)
        return web.Response(status=found.status, headers=headers, body=data)

    @staticmethod
    def _cut(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.close()
        raise asyncio.CancelledError


_HOPS = ("connection", "transfer-encoding", "content-length", "expect", "keep-alive")


@contextmanager
def moody_s3() -> Iterator[tuple[dict[str, str], Moods]]:
    """As `s3_server`, behind a proxy in this process."""
    with s3_server() as environment:
        moods = Moods(environment["AWS_ENDPOINT_URL"])
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def serve() -> web.AppRunner:
            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", moods.answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            moods.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            return runner

        def work() -> None:
            runner = loop.run_until_complete(serve())
            loop.run_forever()
            loop.run_until_complete(runner.cleanup())
            loop.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        ready.wait()
        try:
            yield environment | {"AWS_ENDPOINT_URL": moods.url}, moods
        finally:
            moods.gate.set()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
