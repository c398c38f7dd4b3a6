"""An endpoint's parsed address, its HTTP proxy, and the TCP keepalive of its connections.

Invariants:
- Only the endpoint's own key, or the user and password in its address, is sent as credentials: no ~/.netrc.
- Both transports use the same proxy, from the same environment variables.
- A lost connection is detected within `KEEPALIVE_IDLE_S + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL_S` seconds, however
  long an answer may take.

Sources: RFC 3986 (addresses), RFC 7617 (Basic), curl(1) for HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; tcp(7).
This module opens no connection.
"""

from __future__ import annotations

import base64
import socket
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from lion_ray.core.addresses import is_loopback, without_secrets

CHAT = "/chat/completions"
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy in front of an endpoint."""

    url: str
    """Without user and password."""
    credentials: tuple[str, str] | None = field(repr=False)
    """The user and the password for the proxy."""


@dataclass(frozen=True)
class Address:
    """An endpoint's base_url, parsed."""

    base: str
    """Scheme, host and path, without a trailing slash."""
    query: str = field(repr=False)
    """Appended to every path (Azure's api-version, a gateway's tenant)."""
    credentials: tuple[str, str] | None = field(repr=False)
    """The user and the password in it."""
    proxy: Proxy | None

    @property
    def chat(self) -> str:
        """The address of chat completions."""
        return f"{self.base}{CHAT}" + (f"?{self.query}" if self.query else "")

    @property
    def through(self) -> str:
        """A note about the proxy, for errors; empty without one."""
        return f" (through the proxy {self.proxy.url})" if self.proxy else ""

    @property
    def authorization(self) -> str | None:
        """The Authorization header for its user and password; None if it has neither."""
        return basic(self.credentials)

    @property
    def parameters(self) -> dict[str, str]:
        """The query, decoded."""
        return dict(parse_qsl(self.query, keep_blank_values=True))


def read_address(base_url: str) -> Address:
    """Parse a base_url. Raises ValueError, without secrets in its message, if it is not an HTTP address.

    A trailing /chat/completions is removed.
    """
    if any(ord(character) <= 32 or ord(character) == 127 for character in base_url.strip()):
        raise ValueError("holds a space or a control character")
    parts = urlsplit(base_url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("base_url must start with http:// or https://")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("the port is not a number from 0 to 65535") from None
    path = parts.path.rstrip("/").removesuffix(CHAT).rstrip("/")
    host = parts.netloc.rpartition("@")[2]
    base = f"{parts.scheme}://{host}{path}"
    proxy = proxy_for(parts.scheme, parts.hostname, host)
    return Address(base, parts.query, _credentials(parts), proxy)


def proxy_for(scheme: str, hostname: str, host: str) -> Proxy | None:
    """The environment's proxy for a host. Returns None if it sets none, or exempts this host.

    `host` may have a port. No proxy can reach this machine's loopback. Raises ValueError if the environment sets a
    proxy that is not an HTTP proxy.
    """
    if is_loopback(hostname) or urllib.request.proxy_bypass(host) or urllib.request.proxy_bypass(hostname):
        return None
    known = urllib.request.getproxies()
    url = known.get(scheme) or known.get("all")
    if not url:
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        named = parts.hostname and (parts.port or True)
    except ValueError:
        named = None
    if parts.scheme not in ("http", "https") or not named:
        raise ValueError(
            f"the environment's proxy for it ({scheme.upper()}_PROXY or ALL_PROXY) is '{without_secrets(url)}': only "
            "http:// and https:// proxies are supported; set one, or NO_PROXY for this host"
        )
    return Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", _credentials(parts))


def socket_options() -> list[tuple[int, int, int]]:
    """Socket options of every connection to an endpoint: TCP keepalive, as far as the system supports it."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    dead_ms = 1000 * (KEEPALIVE_IDLE_S + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL_S)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPALIVE", KEEPALIVE_IDLE_S),  # macOS's name for it
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", dead_ms),  # the same for sent data that is not acknowledged
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def basic(credentials: tuple[str, str] | None) -> str | None:
    """The header for a user and a password (RFC 7617). Returns None for None."""
    if credentials is None:
        return None
    return "Basic " + base64.b64encode(":".join(credentials).encode()).decode()


def _credentials(parts: SplitResult) -> tuple[str, str] | None:
    if not parts.username and not parts.password:
        return None
    return unquote(parts.username or ""), unquote(parts.password or "")
