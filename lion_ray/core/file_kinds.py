"""Recognises, by its first bytes, a data file whose format differs from its name's.

Invariants:
- A file in the right format is never refused here.
- Each answer continues a sentence that begins with the file's name, and ends with what to do.

This module opens no file and knows nothing of rows.
"""

from __future__ import annotations

HEAD = 4096
"""How many bytes of the file's beginning are needed."""

_MAGIC = (
    (b"\x1f\x8b", "is gzip; give it a name that ends in .gz"),
    (b"PAR1", "is Parquet; give it a name that ends in .parquet"),
    (b"PK\x03\x04", "is a ZIP archive (or an Excel file); give the file that is in it"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; decompress it first"),
    (b"BZh", "is compressed with bzip2; decompress it first"),
    (b"\xfd7zXZ\x00", "is compressed with xz; decompress it first"),
    (b"ARROW1", "is an Arrow file; write hf: and the folder that `datasets` saved, or save it as Parquet"),
    (b"SQLite format 3\x00", "is an SQLite database; export its table as JSON Lines"),
    (b"%PDF-", "is a PDF; give its rows as JSON Lines"),
)
_UTF = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")


def why_unreadable(head: bytes, *, binary: bool = False) -> str | None:
    """Why a file cannot be read as JSON, or with `binary` as its name's format. Returns None if it may be readable.

    Args:
        head: the file's first HEAD bytes, or all of a shorter file.
    """
    if head.startswith(_POINTERS):
        return "is a git-lfs pointer, not the data; run `git lfs pull` in the clone"
    if b"/annex/objects/" in head[:300] and len(head) < 1000:
        return "is a git-annex pointer, not the data; run `git annex get` in the clone"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!-- ")):
        return "is an HTML page (a sign-in or an error page, saved instead of the data?); download the file itself"
    if text.startswith((b"<?xml", b"<error>")):
        return "is XML (an error message of the storage, saved instead of the data?); download the file itself"
    if binary:
        return None
    for mark, encoding in _UTF:
        if head.startswith(mark):
            return f"is {encoding} (as PowerShell's > and some editors write); save it as UTF-8"
    sample = head[:400]
    # Latin letters in UTF-16 without a byte order mark: every other byte is 0.
    if len(sample) >= 8 and (sample[1::2].count(0) > 0.45 * len(sample) or sample[::2].count(0) > 0.45 * len(sample)):
        return "is UTF-16 (as PowerShell's > and some editors write); save it as UTF-8"
    return next((words for mark, words in _MAGIC if head.startswith(mark)), None)
