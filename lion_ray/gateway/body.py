"""A reply's bytes, unpacked as they come and never more than a bound of them.

Invariants:
- Neither the bytes that came nor what they unpack to exceed the bound, but for one chunk: a body without an end and a
  small one that unpacks to gigabytes cost the same little.
- A body that is not packed as its header says is taken as it is where it does not look packed at all, as some
  gateways unpack and leave the header.

Sources: RFC 9110, 8.4.1 (content codings gzip, x-gzip, deflate); RFC 1951 to 1952. This module knows no HTTP library.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable

from lion_ray.gateway.wire import GARBLED, TOO_LARGE, Rejected, Transient, TransportError

ACCEPTED = "gzip, deflate"
"""What requests say that they take (Accept-Encoding): all that is unpacked here."""
ERROR_BYTES = 2**20
_STEP = 2**16


async def read_body(chunks: AsyncIterable[bytes], status: int, encoding: str | None, limit: int) -> bytes:
    """All that comes, unpacked; of an error's body (`status` not 200) no more than its message can be in.

    Raises TransportError as `Body` does, but not for an error's body: its status says more.
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
        pass  # what there is of it is enough to say what went wrong
    return body.so_far()


class Body:
    """One reply's body."""

    def __init__(self, encoding: str | None, limit: int) -> None:
        """`encoding`: the reply's Content-Encoding; `limit`: in bytes. Raises Transient where it is another."""
        self._limit = limit
        self._data = bytearray()
        self._came = 0
        self._packed = (encoding or "").strip().lower()
        self._unpack: zlib._Decompress | None = None
        if self._packed not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Transient(GARBLED, f"packed as '{self._packed[:40]}', which was not asked for")

    def add(self, chunk: bytes) -> None:
        """Take in what came. Raises TransportError where it is too much, or not packed as it should be."""
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
            raise Transient(GARBLED, f"not packed as {self._packed}: {cause}") from None

    def whole(self) -> bytes:
        """All of it. Raises Transient where a packed body ended before its end."""
        if self._unpack is not None and not self._unpack.eof:
            raise Transient(GARBLED, f"cut off: a body packed as {self._packed} has no end")
        return bytes(self._data)

    def so_far(self) -> bytes:
        """What there is of it, up to the bound."""
        return bytes(self._data[: self._limit])

    def _unpacker(self, first: bytes) -> zlib._Decompress | None:
        if self._packed in ("gzip", "x-gzip") and first[:1] == b"\x1f":
            return zlib.decompressobj(wbits=31)
        if self._packed == "deflate" and first[:1].strip() not in (b"{", b"[", b"d", b"<", b":"):
            # RFC 9110 means zlib's form; many send deflate's own.
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
                self._unpack, chunk = zlib.decompressobj(wbits=31), rest  # gzip's members are one text

    def _too_large(self) -> TransportError:
        return Rejected(
            TOO_LARGE,
            f"more than {self._limit} bytes (endpoints.NAME.max_reply_bytes)",
            answered=True,
        )
