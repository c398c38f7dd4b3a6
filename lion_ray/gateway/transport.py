"""One attempt at a chat completion over HTTP: what a client's transports have in common.

Invariants:
- `Transport.chat` makes one request and returns a Reply or raises a TransportError; it never retries or waits. If the
  process has no file descriptor left for a connection, it raises InfrastructureError.
- No exception, message or reply of a transport holds the API key, not even in an exception's context.
"""

from __future__ import annotations

from typing import Any, Protocol

from lion_ray.gateway.reply import Reply


class Transport(Protocol):
    """One way to send chat completions to one endpoint."""

    async def chat(self, body: dict[str, Any]) -> Reply:
        """Send `body` (see `request.wire_body`) once. Raises TransportError."""

    async def close(self) -> None:
        """Close connections."""
