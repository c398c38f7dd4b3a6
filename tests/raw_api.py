"""A server on loopback that answers as a test says: any status, headers and bytes, where `stub_api` is too tame.

It knows nothing of lion_ray.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = tuple[Any, ...]
"""(status, body) or (status, body, headers); a body that is neither bytes nor text is sent as JSON."""
Handler = Callable[[int, dict[str, Any], web.Request], Answer | Awaitable[web.StreamResponse]]


@dataclass
class RawAPI:
    """What was asked of it."""

    base_url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.bodies)


def chat(text: Any = "The Loire.", finish: Any = "stop", **message: Any) -> Answer:
    """A good answer, or one that is odd in a field."""
    said = {"role": "assistant", "content": text} | message
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    return 200, {"model": "m-1", "choices": [{"index": 0, "message": said, "finish_reason": finish}], "usage": usage}


def error(status: int, message: str, code: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """An error in OpenAI's form."""
    return status, {"error": {"message": message, "type": None, "param": None, "code": code}}, headers or {}


@asynccontextmanager
async def raw_api(answer: Handler, certificate: ssl.SSLContext | None = None) -> AsyncIterator[RawAPI]:
    """Serve; `answer` gets the request's number, from 1 on, its JSON, and itself. Any path, any method."""
    api = RawAPI("")

    async def handle(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        api.bodies.append(json.loads(raw) if raw.startswith(b"{") else {})
        api.paths.append(str(request.rel_url))
        api.headers.append(request.headers)
        given = answer(len(api.bodies), api.bodies[-1], request)
        if not isinstance(given, tuple):
            return await given
        status, body, *rest = given
        if not isinstance(body, bytes):
            body = (body if isinstance(body, str) else json.dumps(body)).encode("utf-8", "surrogatepass")
        headers = {"Content-Type": "application/json"} | (rest[0] if rest else {})
        return web.Response(status=status, body=body, headers=headers)

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate)
    await site.start()
    api.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield api
    finally:
        await runner.cleanup()
