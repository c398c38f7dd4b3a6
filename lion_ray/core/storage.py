"""Storage by its address: retries with backoff, and error messages with advice.

Invariants:
- A request to an object store is retried with exponential backoff for `PATIENCE_S` after a transient error (throttling,
  a 5xx, a lost connection, a timeout). Other errors are raised at once. Local disks are never retried.
- Only idempotent requests are retried: whole puts, reads, listings and deletions.

This module does not know what is stored.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from lion_ray.core.addresses import check_storage
from lion_ray.core.descriptors import none_left, remedy
from lion_ray.core.errors import ConfigError, InfrastructureError, one_line

PATIENCE_S = 60.0
"""How long requests are retried, in seconds. Arrow itself retries for six seconds, five times each: too short and too
often for a store that throttles."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 16.0
STORAGE_ERRORS = (OSError, pa.ArrowException)
_THROTTLED = re.compile(r"SLOW_?DOWN|SlowDown|THROTTLING|TooManyRequests|HTTP status 429|HTTP status 503")
_UNREACHED = re.compile(r"NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT|Timeout was reached|Connection (refused|reset)")
_IN_TROUBLE = re.compile(r"INTERNAL_FAILURE|InternalError|SERVICE_UNAVAILABLE|HTTP status 5\d\d")
_T = TypeVar("_T")
clock, sleep = time.monotonic, time.sleep


def filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system of a local path or of a URL such as ``s3://bucket/prefix``, and the path in it."""
    if "://" in root:
        try:
            return fs.FileSystem.from_uri(check_storage(root))
        except ValueError as error:
            if isinstance(error, pa.ArrowException):
                raise InfrastructureError(f"{root}: no such storage: {line(error)}") from None
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise InfrastructureError(f"{root}: no such storage: {explain(error)}") from None
    return fs.LocalFileSystem(), str(Path(root).expanduser().absolute())


def patiently(work: Callable[[], _T], *, local: bool) -> _T:
    """Call `work` and return its result; retries transient errors of an object store. Raises the last error."""
    if local:
        return work()
    since, pause = clock(), FIRST_PAUSE_S
    while True:
        try:
            return work()
        except FileNotFoundError:
            raise
        except STORAGE_ERRORS as error:
            if not passes(error) or clock() - since + pause > PATIENCE_S:
                raise
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def passes(error: Exception) -> bool:
    """Whether an object store's error is transient, so that a retry may succeed."""
    text = str(error)
    return any(kind.search(text) for kind in (_THROTTLED, _UNREACHED, _IN_TROUBLE))


def line(error: Exception) -> str:
    """A storage error's message in one line."""
    return str(getattr(error, "strerror", None) or one_line(error))


def explain(error: Exception) -> str:
    """A storage error's message in one line, with advice."""
    return f"{line(error)}{advice(error)}"


def advice(error: Exception) -> str:
    """Advice for an error of an object store; empty if there is none."""
    text = str(error)
    if none_left(error):
        return f": this process may open no more files; {remedy().rstrip(',')}"
    if "NO_SUCH_BUCKET" in text or re.search(r"[Bb]ucket .*not (found|exist)", text) or "PATH_NOT_FOUND" in text:
        return ": there is no such bucket; create it, or correct the address"
    if _THROTTLED.search(text):
        return ": it limits the request rate; wait, or let fewer processes write to this bucket"
    if _UNREACHED.search(text):
        return ": it does not answer; check the network and the address (AWS_ENDPOINT_URL or endpoint_override)"
    if _IN_TROUBLE.search(text):
        return ": the service itself has a fault; wait for it"
    if "PermanentRedirect" in text or "AuthorizationHeaderMalformed" in text or "region" in text.lower():
        return ": set the bucket's region, as in s3://bucket/runs?region=eu-west-1 or in AWS_DEFAULT_REGION"
    if "ACCESS_DENIED" in text or "NO_CREDENTIALS" in text or "INVALID_ACCESS_KEY" in text:
        return ": the storage does not accept the credentials (AWS_ACCESS_KEY_ID and the like, or the machine's role)"
    return ""


def refused(target: str | Path, error: Exception, what: str = "the write") -> InfrastructureError:
    """The error for the user: what was refused, for which file, and what to do."""
    return InfrastructureError(
        f"{target}: the storage refused {what} ({explain(error)}); correct that and run the same command to resume"
    )
