"""Reads a reply's body: decompresses it as it arrives, up to a size limit.

Invariants:
- Neither the received nor the decompressed bytes exceed the limit by more than one chunk, so an endless body or a
  compression bomb costs little.
- A body that does not look compressed is read uncompressed, whatever its header says, because some gateways decompress
  a body and leave the header.

Sources: RFC 9110, 8.4.1 (content codings gzip, x-gzip, deflate); RFC 1951 to 1952. This module knows no HTTP library.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable

from lion_ray.gateway.wire import GARBLED, TOO_LARGE, Rejected, Transient, TransportError

ACCEPTED = "gzip, deflate"
"""The Accept-Encoding of requests: the encodings that this module decompresses."""
ERROR_BYTES = 2**20
_STEP = 2**16


async def read_body(chunks: AsyncIterable[bytes], status: int, encoding: str | None, limit: int) -> bytes:
    """Read a whole body, decompressed; of an error's body (`status` not 200) at most `ERROR_BYTES`.

    Raises TransportError as `Body` does, but not for an error's body, whose status is more informative.
    """
    if status == 200:
        body = Body(encoding, limit)
        async for chunk in chunks:
            body.add(chunk)
        return body.whole()
    try:
        body = Body(encoding, min(limit, ERROR_BYTES))
    except TransportError:
        return b""
    try:
        async for chunk in chunks:
            body.add(chunk)
    except TransportError:
        pass  # the part that arrived is enough for an error message
    return body.so_far()


class Body:
    """One reply's body."""

    def __init__(self, encoding: str | None, limit: int) -> None:
        """`encoding`: the reply's Content-Encoding; `limit`: in bytes. Raises Transient for an unsupported encoding."""
        self._limit = limit
        self._data = bytearray()
        self._came = 0
        self._packed = (encoding or "").strip().lower()
        self._unpack: zlib._Decompress | None = None
        if self._packed not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Transient(GARBLED, f"compressed as '{self._packed[:40]}', which was not requested")

    def add(self, chunk: bytes) -> None:
        """Add a received chunk. Raises TransportError if the body is too large or not validly compressed."""
        if not chunk:
            return
        if not self._came:
            self._unpack = self._unpacker(chunk)
        self._came += len(chunk)
        if self._came > self._limit:
            raise self._too_large()
        if self._unpack is None:
            self._data += chunk
            return
        try:
            self._add_unpacked(chunk)
        except zlib.error as cause:
            raise Transient(GARBLED, f"not valid {self._packed}: {cause}") from None

    def whole(self) -> bytes:
        """The whole body. Raises Transient if a compressed body is truncated."""
        if self._unpack is not None and not self._unpack.eof:
            raise Transient(GARBLED, f"cut off: a body compressed as {self._packed} is incomplete")
        return bytes(self._data)

    def so_far(self) -> bytes:
        """The part that has arrived, up to the limit."""
        return bytes(self._data[: self._limit])

    def _unpacker(self, first: bytes) -> zlib._Decompress | None:
        if self._packed in ("gzip", "x-gzip") and first[:1] == b"\x1f":
            return zlib.decompressobj(wbits=31)
        if self._packed == "deflate" and first[:1].strip() not in (b"{", b"[", b"d", b"<", b":"):
            # RFC 9110 specifies the zlib format; many servers send raw deflate.
            return zlib.decompressobj(wbits=15 if first[0] & 0xF == 8 else -15)
        return None

    def _add_unpacked(self, chunk: bytes) -> None:
        assert self._unpack is not None
        while chunk:
            self._data += self._unpack.decompress(chunk, _STEP)
            if len(self._data) > self._limit:
                raise self._too_large()
            chunk = self._unpack.unconsumed_tail
            if self._unpack.eof and (rest := self._unpack.unused_data):
                if self._packed == "deflate" or rest[:1] != b"\x1f":
                    return  # padding
                self._unpack, chunk = zlib.decompressobj(wbits=31), rest  # gzip members are concatenated

    def _too_large(self) -> TransportError:
        return Rejected(
            TOO_LARGE,
            f"more than {self._limit} bytes (endpoints.NAME.max_reply_bytes)",
            answered=True,
        )
