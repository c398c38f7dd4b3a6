"""Storage by its address, what it says when it refuses, and how long one waits for it.

Invariants:
- An object store that is in trouble (it throttles, answers with a 5xx, cuts connections or is late) is asked again,
  after longer and longer pauses, for `PATIENCE_S`; what else it says is raised at once. A local disk never waits.
- Only what may be done twice is asked again: whole puts, reads, listings and deletions.

This module does not know what is kept there.
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
"""Arrow itself asks for six seconds, five times in each: too short for a throttle, and no rest for it."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 16.0
STORAGE_ERRORS = (OSError, pa.ArrowException)
_THROTTLED = re.compile(r"SLOW_?DOWN|SlowDown|THROTTLING|TooManyRequests|HTTP status 429|HTTP status 503")
_UNREACHED = re.compile(r"NETWORK_CONNECTION|curlCode|REQUEST_TIMEOUT|Timeout was reached|Connection (refused|reset)")
_IN_TROUBLE = re.compile(r"INTERNAL_FAILURE|InternalError|SERVICE_UNAVAILABLE|HTTP status 5\d\d")
_T = TypeVar("_T")
clock, sleep = time.monotonic, time.sleep


def filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it of a local path or a URL such as ``s3://bucket/prefix``."""
    if "://" in root:
        try:
            return fs.FileSystem.from_uri(check_storage(root))
        except ValueError as error:
            if isinstance(error, pa.ArrowException):
                raise InfrastructureError(f"{root}: no such storage: {line(error)}") from None
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise InfrastructureError(f"{root}: no such storage: {told(error)}") from None
    return fs.LocalFileSystem(), str(Path(root).expanduser().absolute())


def patiently(work: Callable[[], _T], *, local: bool) -> _T:
    """What `work` returns; asked again while an object store is in trouble. Raises what it raises at last."""
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
    """Whether an object store may answer otherwise in a while."""
    said = str(error)
    return any(kind.search(said) for kind in (_THROTTLED, _UNREACHED, _IN_TROUBLE))


def line(error: Exception) -> str:
    """One line of what a storage said."""
    return str(getattr(error, "strerror", None) or one_line(error))


def told(error: Exception) -> str:
    """One line of what a storage said, and what to do about it."""
    return f"{line(error)}{advice(error)}"


def advice(error: Exception) -> str:
    """What to do about what object stores say in their own words."""
    said = str(error)
    if none_left(error):
        return f": this process may open no more files; {remedy().rstrip(',')}"
    if "NO_SUCH_BUCKET" in said or re.search(r"[Bb]ucket .*not (found|exist)", said) or "PATH_NOT_FOUND" in said:
        return ": there is no such bucket; make it, or correct the address"
    if _THROTTLED.search(said):
        return ": it takes no more requests now; wait, or let fewer processes write to this bucket"
    if _UNREACHED.search(said):
        return ": it does not answer; see the network and the address (AWS_ENDPOINT_URL or endpoint_override)"
    if _IN_TROUBLE.search(said):
        return ": the service itself is in trouble; wait for it"
    if "PermanentRedirect" in said or "AuthorizationHeaderMalformed" in said or "region" in said.lower():
        return ": name the bucket's region, as in s3://bucket/runs?region=eu-west-1 or in AWS_DEFAULT_REGION"
    if "ACCESS_DENIED" in said or "NO_CREDENTIALS" in said or "INVALID_ACCESS_KEY" in said:
        return ": no credentials that the storage takes (AWS_ACCESS_KEY_ID and the like, or the machine's role)"
    return ""


def refused(target: str | Path, error: Exception, what: str = "the write") -> InfrastructureError:
    """As the user is told it: what was refused, of which file, and what to do."""
    return InfrastructureError(
        f"{target}: the storage refused {what} ({told(error)}); mend that and run the same command: it goes on"
    )
