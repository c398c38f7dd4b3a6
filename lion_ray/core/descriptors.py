"""A process that may open no more files: each connection, and each file of a journal, is one.

Invariant: it is the machine's matter and no endpoint's, so it ends a run at once, in one line that says what to do; an
endpoint that could not be asked is not counted as down.

This module opens nothing.
"""

from __future__ import annotations

import errno
import resource

from lion_ray.core.errors import InfrastructureError


def none_left(error: BaseException) -> bool:
    """Whether an error, or what it came of, is that no descriptor was left."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def no_descriptors(what: str) -> InfrastructureError:
    """The error, where `what` could not be opened."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return InfrastructureError(
        f"{what}: this process may open no more files and connections (its limit is {limit}); {remedy(limit, most)} "
        "and run the same command: it goes on"
    )


def remedy(limit: int | None = None, most: int | None = None) -> str:
    """What to do about it."""
    if limit is None or most is None:
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(4096, 4 * limit)
    beyond = most != resource.RLIM_INFINITY and most < wanted
    hard = f" (the hard limit, {most}, has to be raised too)" if beyond else ""
    return f"raise it (ulimit -n {wanted}){hard}, or set endpoints.NAME.max_concurrency lower,"


def raise_limit() -> None:
    """Let this process open as many files as its user may."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most and most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
