"""One endpoint's Batch API over the `openai` package: each method is one request (or one listing), never repeated.

Invariants:
- Failures are TransportErrors with `wire`'s meanings; none holds the API key, not even as an exception's context.
- An object that the endpoint does not know (404 by its id) is Gone, not an endpoint without a Batch API.

Source: OpenAI's API reference, Files and Batch. This module knows nothing of calls, records or time between requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lion_ray.core.addresses import without_secrets
from lion_ray.core.descriptors import no_descriptors, none_left
from lion_ray.gateway.batch.lines import URL
from lion_ray.gateway.wire import CONNECTION_LOST, GARBLED, TIMED_OUT, Transient, TransportError, shorten, status_error

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

NONCE = "lion_ray_nonce"
OVER = ("completed", "failed", "expired", "cancelled")
_CLOCKS_DIFFER_S = 86_400.0
_DELETE_S = 30.0
"""Timeout of deletions and cancellations: no answer depends on them, and the end of a run waits for them."""
_T = TypeVar("_T")


class Gone(TransportError):  # noqa: N818 - it names an answer, not a mistake
    """The endpoint does not know this batch or file (any more)."""


class BatchAPI:
    """Requests about files and batches. All methods raise TransportError."""

    def __init__(self, api: openai.AsyncOpenAI, timeout_s: float, *, keyed: bool) -> None:
        """`api` is made with max_retries=0. `timeout_s` applies to each small request; a file transfer has no limit
        while bytes move. `keyed`: the package's key is a real key, not a placeholder, which may be an ordinary word."""
        self._api = api
        self._key = api.api_key.encode() if keyed else b""
        self._timeout_s = timeout_s
        self.address = without_secrets(str(api.base_url))

    async def close(self) -> None:
        """Close connections."""
        await self._api.close()

    async def upload(self, name: str, data: bytes) -> str:
        """Upload a batch's input and return its file id."""
        sent = self._api.files.create(file=(name, data, "application/jsonl"), purpose="batch")
        return _known((await self._ask("the upload of a batch", sent, limit_s=None)).id)

    async def create(self, file_id: str, nonce: str, window: str) -> Batch:
        """Buy a batch. After a Transient error it may have been created: check with `find`."""
        sent = self._api.batches.create(
            input_file_id=file_id,
            endpoint=cast("Any", URL),
            completion_window=cast("Any", window),
            metadata={NONCE: nonce},
        )
        return _batch(await self._ask("the creation of a batch", sent))

    async def retrieve(self, batch_id: str) -> Batch:
        """A batch as it is now. Raises Gone."""
        sent = self._api.batches.retrieve(batch_id)
        return _batch(await self._ask(f"batch {batch_id}", sent, by_id=True))

    async def cancel(self, batch_id: str) -> Batch:
        """Ask the endpoint to cancel a batch, which takes time; finished lines are billed. Raises Gone."""
        sent = self._api.batches.cancel(batch_id)
        return _batch(await self._ask(f"the end of batch {batch_id}", sent, limit_s=_DELETE_S, by_id=True))

    async def find(self, nonce: str, since: float) -> Batch | None:
        """The batch with this nonce, created around `since` or later; endpoints list the newest first."""

        async def look() -> Batch | None:
            async for batch in self._api.batches.list(limit=100):
                if isinstance(batch.metadata, dict) and batch.metadata.get(NONCE) == nonce:
                    return batch
                if batch.created_at and batch.created_at < since - _CLOCKS_DIFFER_S:
                    return None
            return None

        # No overall limit for many pages; each has the HTTP client's.
        return await self._ask("the list of batches", look(), limit_s=None)

    async def download(self, file_id: str, write: Callable[[bytes], None]) -> None:
        """Pass a file's bytes to `write` as they arrive. Raises Gone."""

        async def fetch() -> None:
            async with self._api.files.with_streaming_response.content(file_id) as response:
                async for chunk in response.iter_bytes():
                    write(chunk)

        await self._ask(f"file {file_id}", fetch(), limit_s=None, by_id=True)

    async def delete(self, file_id: str) -> None:
        """Delete a file. Raises Gone."""
        await self._ask(f"file {file_id}", self._api.files.delete(file_id), limit_s=_DELETE_S, by_id=True)

    def redact(self, text: bytes) -> bytes:
        """The text without the API key, which some services quote."""
        return text.replace(self._key, b"***") if self._key else text

    async def _ask(self, what: str, request: Awaitable[_T], *, limit_s: float | None = -1, by_id: bool = False) -> _T:
        import openai

        from lion_ray.gateway.openai_transport import connection_error

        error: TransportError
        out = False
        limit_s = self._timeout_s if limit_s == -1 else limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await request
        except TimeoutError:
            error = Transient(TIMED_OUT, f"no complete answer within {limit_s:g} s")
        except openai.NotFoundError as cause:
            error = Gone(self._said(cause.response.text)) if by_id else self._status(cause)
        except openai.APIStatusError as cause:
            error = self._status(cause)
        except openai.APIConnectionError as cause:
            error = connection_error(cause, self._key.decode() or None)
            out = none_left(cause)
        except (openai.APIError, ValueError) as cause:
            error = Transient(GARBLED, self._said(str(cause)))
        except Exception as cause:
            # While a file streams, the package does not wrap its HTTP library's errors.
            if not type(cause).__module__.startswith("httpx"):
                raise
            error = Transient(CONNECTION_LOST, self._said(f"{type(cause).__name__}: {cause}"))
        if out:
            raise no_descriptors(f"{what}, at {self.address}")
        error.detail = f"{what}: {error.detail}"
        # Raised outside the except blocks, so that no library exception (whose request holds the key) is chained to it.
        raise error

    def _status(self, cause: openai.APIStatusError) -> TransportError:
        text = self.redact(cause.response.text.encode("utf-8", "replace")).decode()
        return status_error(cause.status_code, cause.response.headers, text)

    def _said(self, text: str) -> str:
        return shorten(self.redact(text.encode("utf-8", "replace")).decode())


def _known(file_id: object) -> str:
    if not isinstance(file_id, str) or not file_id:
        raise Transient(GARBLED, "the endpoint accepted a batch's file without returning an id")
    return file_id


def _batch(answer: object) -> Batch:
    """Check an answer, because the package builds its types from any JSON, and returns other bodies as text."""
    from openai.types import Batch

    if not isinstance(answer, Batch) or not isinstance(answer.id, str) or not isinstance(answer.status, str):
        raise Transient(GARBLED, f"no batch in the answer: {shorten(str(answer))}")
    return answer
