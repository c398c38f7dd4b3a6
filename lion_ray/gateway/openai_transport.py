"""Chat completions by the `openai` package, and its client for the Batch API.

Invariants: those of `transport`.

This module knows nothing of the journal, of concurrency or of backoff; `wire` interprets statuses and bodies. The
package takes a second to import, so only what uses it imports this module.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from typing import Any

import openai

from lion_ray.config import EndpointConfig
from lion_ray.core.addresses import without_secrets
from lion_ray.core.descriptors import no_descriptors, none_left
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.address import Address, socket_options
from lion_ray.gateway.body import ACCEPTED, read_body
from lion_ray.gateway.reply import Reply, parse_reply
from lion_ray.gateway.wire import (
    CONNECTION_LOST,
    GARBLED,
    TIMED_OUT,
    Refused,
    Transient,
    TransportError,
    Unreachable,
    redact,
    redact_text,
    shorten,
    status_error,
)


class _BoundedClient(openai.DefaultAsyncHttpxClient):
    """The package's HTTP client, with a limit on a reply's size, and no redirects."""

    max_reply_bytes = 0

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        response = await super().send(request, stream=True, **options)
        if stream and response.status_code == 200:
            return response  # a batch's file, which is streamed to a disk
        try:
            encoding = response.headers.get("content-encoding")
            chunks = response.aiter_raw()
            data = await read_body(chunks, response.status_code, encoding, self.max_reply_bytes)
        finally:
            await response.aclose()
        left = {"content-encoding", "content-length", "transfer-encoding"}
        headers = [pair for pair in response.headers.multi_items() if pair[0].lower() not in left]
        return type(response)(response.status_code, headers=headers, content=data, request=request)


def openai_client(config: EndpointConfig, address: Address, api_key: str | None) -> openai.AsyncOpenAI:
    """The `openai` package's client for an endpoint, without its retries: this package makes its own."""
    # httpx has no timeout for the first byte alone; its read timeout limits that wait, and every later one.
    read_s = config.first_byte_timeout_s or config.timeout_s
    timeout = openai.Timeout(config.timeout_s, connect=config.connect_timeout_s, read=read_s)
    # The package has changed its HTTP library before: use the library of its client class.
    library: Any = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
    proxy = address.proxy
    client = _BoundedClient(
        base_url=address.base,
        timeout=timeout,
        follow_redirects=False,
        headers={"Accept-Encoding": ACCEPTED},
        trust_env=False,
        transport=library.AsyncHTTPTransport(
            limits=library.Limits(max_connections=None, max_keepalive_connections=None),
            proxy=None if proxy is None else library.Proxy(proxy.url, auth=proxy.credentials),
            socket_options=socket_options(),
        ),
    )
    client.max_reply_bytes = config.max_reply_bytes
    given = address.authorization if api_key is None else None
    return openai.AsyncOpenAI(
        api_key=api_key or "none",
        base_url=address.base,
        default_query=address.parameters,
        default_headers={"Authorization": given} if given else None,
        max_retries=0,
        timeout=timeout,
        http_client=client,
    )


def connection_error(error: openai.APIConnectionError, key: str | None) -> TransportError:
    """The TransportError for a connection error; its detail does not hold the key."""
    cause = error.__cause__
    # By name: the openai package has changed its HTTP library before, and these names stayed.
    names = {kind.__name__ for kind in type(cause).__mro__}
    detail = shorten(redact_text(f"{type(cause).__name__}: {cause}", key))
    if names & {"ConnectError", "ConnectTimeout", "ProxyError"}:
        return Unreachable(detail)
    if names & {"UnsupportedProtocol", "TooManyRedirects"}:
        return Refused("address", detail)
    if isinstance(error, openai.APITimeoutError):
        return Transient(TIMED_OUT, detail)
    if "DecodingError" in names or ("RemoteProtocolError" in names and re.search("body|chunked", str(cause))):
        return Transient(GARBLED, f"cut off: {detail}")
    return Transient(CONNECTION_LOST, detail)


class OpenAITransport:
    """The `openai` package's client, without its retries; slower than `http`."""

    def __init__(self, config: EndpointConfig, address: Address, api_key: str | None) -> None:
        """`api_key` None: the endpoint needs no key."""
        self._key = api_key
        self._through = address.through
        self._total_s = config.timeout_s
        self._client = openai_client(config, address, api_key)

    async def chat(self, body: dict[str, Any]) -> Reply:
        error: TransportError | InfrastructureError
        # The package knows only the current fields' names; extra_body accepts any.
        body = dict(body)
        model, messages = body.pop("model"), body.pop("messages")
        try:
            async with asyncio.timeout(self._total_s):
                create = self._client.chat.completions.with_raw_response.create
                response = await create(model=model, messages=messages, extra_body=body)
            return parse_reply(redact(response.content, self._key), response.headers)
        except TimeoutError:
            error = Transient(TIMED_OUT, f"no complete answer within {self._total_s:g} s")
        except openai.APIStatusError as cause:
            error = status_error(cause.status_code, cause.response.headers, redact_text(cause.response.text, self._key))
        except openai.APIConnectionError as cause:
            error = connection_error(cause, self._key)
            if isinstance(error, Unreachable):
                error = Unreachable(error.detail + self._through)
            if none_left(cause):
                error = no_descriptors(f"no connection to {without_secrets(str(self._client.base_url))}")
        except TransportError as cause:
            error = cause
        # Raised outside the except blocks, so that no library exception (whose request holds the key) is chained to it.
        raise error

    async def close(self) -> None:
        await self._client.close()
