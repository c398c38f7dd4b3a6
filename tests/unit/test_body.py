"""A reply's bytes: unpacked as they come, and never more than the bound."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator

import pytest

from lion_ray.gateway.body import ERROR_BYTES, Body, read_body
from lion_ray.gateway.wire import TOO_LARGE, Rejected, Transient

TEXT = b'{"choices": []}' * 1000
RAW = zlib.compressobj(wbits=-15)
PACKED = {
    None: TEXT,
    "identity": TEXT,
    "gzip": gzip.compress(TEXT, mtime=0),
    "x-gzip": gzip.compress(TEXT[:7000], mtime=0) + gzip.compress(TEXT[7000:], mtime=0),
    "deflate": zlib.compress(TEXT),
    " GZIP ": gzip.compress(TEXT, mtime=0) + b"\0" * 20,
}


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 4096, 10**6])
@pytest.mark.parametrize("encoding", PACKED)
async def test_every_packing_in_pieces_of_any_size(encoding: str | None, size: int) -> None:
    assert await read_body(pieces(PACKED[encoding], size), 200, encoding, len(TEXT)) == TEXT


async def test_deflate_as_it_is_often_sent_and_headers_that_are_wrong() -> None:
    raw = RAW.compress(TEXT) + RAW.flush()
    assert await read_body(pieces(raw, 100), 200, "deflate", len(TEXT)) == TEXT
    for encoding in ("gzip", "deflate"):
        assert await read_body(pieces(TEXT, 100), 200, encoding, len(TEXT)) == TEXT


async def test_no_more_than_the_bound_is_taken() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            yield b"x" * 1000

    with pytest.raises(Rejected, match="max_reply_bytes") as caught:
        await read_body(endless(), 200, None, 50_000)
    assert (caught.value.reason, caught.value.answered) == (TOO_LARGE, True)
    assert read <= 51_000
    # An error's status says more than its body, and so much of the body as an error needs is kept.
    assert ERROR_BYTES - 1000 < len(await read_body(endless(), 500, None, 10**9)) <= ERROR_BYTES
    assert await read_body(pieces(PACKED["gzip"], 100), 500, "gzip", len(TEXT)) == TEXT


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_small_body_that_unpacks_to_a_large_one(encoding: str) -> None:
    bomb = gzip.compress(bytes(50_000_000)) if encoding == "gzip" else zlib.compress(bytes(50_000_000))
    assert len(bomb) < 60_000
    body = Body(encoding, 100_000)
    with pytest.raises(Rejected, match="max_reply_bytes"):
        body.add(bomb)
    assert len(body._data) <= 200_000


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("br", b"x"),
        ("zstd", b"x"),
        ("gzip", PACKED["gzip"][:50]),
        ("gzip", b"\x1f\x8b" + b"x" * 50),
        ("deflate", b"\x78x"),
    ],
)
async def test_what_cannot_be_unpacked_is_garbled(encoding: str, data: bytes) -> None:
    with pytest.raises(Transient):
        await read_body(pieces(data, 10), 200, encoding, 10**6)
    await read_body(pieces(data, 10), 500, encoding, 1000)
