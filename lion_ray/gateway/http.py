"""Chat completions over aiohttp: the fast transport.

Invariants: those of `transport.Transport`. Redirects are not followed: one could send the key and the prompts to
another host. Of the environment only the settings in `address` are used: no ~/.netrc.

`openai_transport.OpenAITransport` spends its time on building requests and typed answers. This transport sends orjson's
bytes and reads only the fields that a Reply needs (bench/gateway.py measures both).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import aiohttp
import orjson
from aiohttp import AddrInfoType

from lion_ray.config import EndpointConfig
from lion_ray.core.addresses import without_secrets
from lion_ray.core.descriptors import no_descriptors, none_left
from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.address import Address, basic, socket_options
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


class AiohttpTransport:
    """One aiohttp session. Use it from one event loop."""

    def __init__(self, config: EndpointConfig, address: Address, api_key: str | None) -> None:
        """`api_key` None: the endpoint needs no key."""
        self._key = api_key
        self._address = address
        self._authorization = address.authorization if api_key is None else f"Bearer {api_key}"
        self._url = address.chat
        self._total_s = config.timeout_s
        self._first_byte_s = config.first_byte_timeout_s
        self._limit = config.max_reply_bytes
        self._timeout = aiohttp.ClientTimeout(total=config.timeout_s, sock_connect=config.connect_timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def chat(self, body: dict[str, Any]) -> Reply:
        error: TransportError | InfrastructureError
        try:
            status, headers, data = await self._post(orjson.dumps(body))
        except TransportError as cause:
            error = cause
        except TimeoutError as cause:
            connecting = isinstance(cause, aiohttp.ConnectionTimeoutError)
            error = Unreachable(f"no connection: {cause}") if connecting else self._timed_out(cause)
        except aiohttp.ClientHttpProxyError as cause:
            error = Unreachable(f"HTTP {cause.status}: {shorten(cause.message)}{self._address.through}")
        except aiohttp.ClientConnectorError as cause:
            error = Unreachable(self._told(cause) + self._address.through)
            if none_left(cause):
                error = no_descriptors(f"no connection to {without_secrets(self._url)}")
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as cause:
            error = Refused("address", self._told(cause))
        except aiohttp.ClientPayloadError as cause:
            error = Transient(GARBLED, f"cut off: {self._told(cause)}")
        except (aiohttp.ClientError, OSError) as cause:
            error = Transient(CONNECTION_LOST, self._told(cause))
        else:
            data = redact(data, self._key)
            if status == 200:
                return parse_reply(data, headers)
            error = status_error(status, headers, data.decode("utf-8", "replace"))
        # Raised outside the except blocks, so that no library exception (whose request holds the key) is chained to it.
        raise error

    async def _post(self, data: bytes) -> tuple[int, Any, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # limit=0: the client limits concurrency already.
                connector=aiohttp.TCPConnector(
                    limit=0, ttl_dns_cache=300, socket_factory=_socket, ssl=_trust(self._url)
                ),
                headers={"Content-Type": "application/json", "Accept-Encoding": ACCEPTED},
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        proxy = self._address.proxy
        # Not in the session's headers, which the library also sends to a proxy.
        headers = {} if self._authorization is None else {"Authorization": self._authorization}
        for_proxy: dict[str, str] = {}
        if proxy is not None and (given := basic(proxy.credentials)) is not None:
            # With plain HTTP the proxy reads its header from the request; with HTTPS from the tunnel's CONNECT request.
            (for_proxy if self._url.startswith("https:") else headers)["Proxy-Authorization"] = given
        # The headers are an answer's first bytes; they arrive when the endpoint begins to answer.
        async with asyncio.timeout(self._first_byte_s):
            response = await self._session.post(
                self._url,
                data=data,
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                headers=headers,
                proxy_headers=for_proxy or None,
            )
        async with response:
            encoding = response.headers.get("content-encoding")
            chunks = response.content.iter_any()
            return response.status, response.headers, await read_body(chunks, response.status, encoding, self._limit)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _timed_out(self, cause: BaseException) -> Transient:
        # aiohttp's timeouts have other types; a plain TimeoutError is our first-byte timeout.
        if type(cause) is TimeoutError and self._first_byte_s is not None:
            return Transient(TIMED_OUT, f"no answer began within {self._first_byte_s:g} s")
        return Transient(TIMED_OUT, f"no complete answer within {self._total_s:g} s")

    def _told(self, cause: BaseException) -> str:
        return shorten(redact_text(f"{type(cause).__name__}: {cause}", self._key))


def _trust(url: str) -> ssl.SSLContext | bool:
    """The trusted certificates, loaded now so that the current SSL_CERT_FILE applies."""
    return ssl.create_default_context() if url.startswith("https:") else True


def _socket(info: AddrInfoType) -> socket.socket:
    made = socket.socket(*info[:3])
    for option in socket_options():
        made.setsockopt(*option)
    return made
