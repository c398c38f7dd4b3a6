"""The lines of a batch's files: builds request lines, and interprets output lines.

Invariants:
- `wire` interprets statuses and answers, so a call has the same outcome in a batch and live.
- A line that is missing, garbled, expired, or failed with a transient error is NotDone: its call is retried.
- NotDone tells whether the endpoint may have done the work and may bill it: as for a live reply, and for missing lines
  by the endpoint's own count.
- Memory holds the positions of the output lines; their texts are in an unnamed file that is removed with the process.

Formats: OpenAI's Batch API, request input, request output and errors. This module knows nothing of HTTP or of batches'
states.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import islice
from typing import Any

import orjson

from lion_ray.core.errors import InfrastructureError, one_line
from lion_ray.gateway.reply import Reply, read_reply
from lion_ray.gateway.wire import RateLimited, Transient, TransportError, error_of, loads, message_of, shorten

URL = "/v1/chat/completions"


class NotDone(TransportError):  # noqa: N818 - it names an answer, not a mistake
    """A batch ended without an answer to this request; a retry may succeed.

    `billed`: the work may have been done and billed nevertheless, by the batch `nonce`.
    """

    def __init__(self, detail: str, *, billed: bool = False) -> None:
        super().__init__(detail)
        self.billed = billed
        self.nonce = ""


class InJournal(Exception):  # noqa: N818 - it names an answer, not a mistake
    """Another process that shares the journal has bought this answer, or fetched it of a batch, and journaled it."""


def request_line(key: str, body: dict[str, Any]) -> bytes:
    """One request in a batch's input file, with its newline."""
    return orjson.dumps({"custom_id": key, "method": "POST", "url": URL, "body": body}) + b"\n"


def read_line(data: bytes | None) -> Reply:
    """A batch's answer to one request; `data` is its output line, or None if there is none.

    Raises NotDone; Rejected if this request can never succeed; Refused if the endpoint would refuse any request.
    """
    line = _parse(data) if data is not None else None
    if line is None:
        raise NotDone("the batch gave no readable answer to this request")
    response, error = line.get("response"), line.get("error")
    status = response.get("status_code") if isinstance(response, dict) else None
    if not isinstance(response, dict) or not isinstance(status, int):
        # Expired and cancelled requests have an error and no response.
        raise NotDone(shorten(f"not done by the batch: {message_of({'error': error}) or 'no reason given'}"))
    body = response.get("body")
    try:
        if status >= 400:
            raise error_of(status, {}, body)
        return read_reply(body, data=data or b"")
    except RateLimited as passing:
        raise NotDone(passing.detail) from None
    except Transient as passing:
        raise NotDone(passing.detail, billed=passing.uncertain) from None


class Output:
    """The output lines of a batch."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the batch
        self._places: dict[str, tuple[int, int]] = {}
        self.answered: set[str] = set()
        """Keys whose line holds an answer."""
        self.doubtful: set[str] = set()
        """Keys without a line that may have been answered nevertheless."""

    def write(self, chunk: bytes) -> None:
        """Add a part of a file. Raises InfrastructureError if this machine has no space for it."""
        try:
            self._file.write(chunk)
        except OSError as cause:
            raise InfrastructureError(
                f"a batch's answers cannot be stored on this machine: {one_line(cause)}"
            ) from cause

    def index(self, keys: Sequence[str], done: int | None) -> None:
        """Find the lines of these keys, after everything was written (blocking); the first line of a key counts.

        `done`: the number of answers that the endpoint reports, or None.
        """
        self._file.seek(0)
        known = frozenset(keys)
        offset = unreadable = 0
        for data in self._file:
            line = _parse(data)
            unreadable += line is None and bool(data.strip())
            key = line.get("custom_id") if line is not None else None
            if line is not None and isinstance(key, str) and key in known and key not in self._places:
                self._places[key] = (offset, len(data))
                response = line.get("response")
                if isinstance(response, dict) and response.get("status_code") == 200:
                    self.answered.add(key)
            offset += len(data)
        lost = max(unreadable, (done or 0) - len(self.answered))
        # It is unknown which of the missing ones were answered; only the number matters.
        self.doubtful = set(islice((key for key in keys if key not in self._places), lost))

    def line(self, key: str) -> bytes | None:
        """A key's line. Returns None if there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        self._file.seek(place[0])
        return self._file.read(place[1])

    def close(self) -> None:
        """Release the disk space."""
        self._file.close()


def _parse(data: bytes) -> dict[str, Any] | None:
    """A line's object. Returns None if it is not a JSON object."""
    try:
        line = loads(data)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
