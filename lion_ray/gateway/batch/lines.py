"""The lines of a batch's files: requests as they are sent, and what a line that came back means.

Invariants:
- What a status or an answer means is `wire`'s to say, so a call in a batch ends as the same call would live.
- A line that is missing, garbled, expired, or failed for a passing reason is NotDone: no call is given up for it.
- Of such a line it is said whether the endpoint may have done the work, and charge for it: as of a live reply, and
  where there is no line, by the endpoint's own count.
- Memory holds where the lines that came back are; their texts are in an unnamed file that dies with the process.

Formats: OpenAI's Batch API, request input, request output and errors. This module knows nothing of HTTP or of batches'
lives.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import islice
from typing import Any

import orjson

from lion_ray.core.errors import InfrastructureError
from lion_ray.gateway.reply import Reply, read_reply
from lion_ray.gateway.wire import RateLimited, Transient, TransportError, error_of, loads, message_of, shorten

URL = "/v1/chat/completions"


class NotDone(TransportError):  # noqa: N818 - it names an answer, not a mistake
    """A batch ended without an answer to this request; sent again, it may succeed.

    `billed`: it may have been done all the same, and charged for.
    """

    def __init__(self, detail: str, *, billed: bool = False) -> None:
        super().__init__(detail)
        self.billed = billed


def request_line(key: str, body: dict[str, Any]) -> bytes:
    """One request in a batch's input file, with its newline."""
    return orjson.dumps({"custom_id": key, "method": "POST", "url": URL, "body": body}) + b"\n"


def read_line(data: bytes | None) -> Reply:
    """What a batch answered to one request; None where its files have no line for it.

    Raises NotDone; Rejected where this request never succeeds; Refused where the endpoint refused it as it would any.
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
    """The lines that a batch gave back."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the batch
        self._places: dict[str, tuple[int, int]] = {}
        self.answered: set[str] = set()
        """Keys whose line says that there is an answer."""
        self.doubtful: set[str] = set()
        """Keys without a line that may have been answered all the same."""

    def write(self, chunk: bytes) -> None:
        """Take in a part of a file. Raises InfrastructureError where this machine has no room for it."""
        try:
            self._file.write(chunk)
        except OSError as cause:
            raise InfrastructureError(f"a batch's answers cannot be kept on this machine: {cause}") from cause

    def index(self, keys: Sequence[str], done: int | None) -> None:
        """Find the lines of these keys, after everything was written. Blocking; the first line of a key stands.

        `done`: of how many the endpoint says that it answered them, where it says so.
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
        # Which of them were answered nobody can tell; how many is what counts.
        self.doubtful = set(islice((key for key in keys if key not in self._places), lost))

    def line(self, key: str) -> bytes | None:
        """A key's line, or None where there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        self._file.seek(place[0])
        return self._file.read(place[1])

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()


def _parse(data: bytes) -> dict[str, Any] | None:
    """A line's object; None where it is none."""
    try:
        line = loads(data)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
