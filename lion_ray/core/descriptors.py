"""The limit of file descriptors: each connection and each journal file uses one.

Invariant: reaching the limit is a fault of the machine, not of an endpoint. It ends a run at once with a one-line error
that says what to do, and does not count against the endpoint.

This module opens nothing.
"""

from __future__ import annotations

import errno
import resource

from lion_ray.core.errors import InfrastructureError


def none_left(error: BaseException) -> bool:
    """Whether an error, or one in its chain of causes, is that no file descriptor was left."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def no_descriptors(what: str) -> InfrastructureError:
    """The error to raise if `what` could not be opened."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return InfrastructureError(
        f"{what}: this process may open no more files and connections (its limit is {limit}); {remedy(limit, most)} "
        "and run the same command to resume"
    )


def remedy(limit: int | None = None, most: int | None = None) -> str:
    """What the user can do about the limit."""
    if limit is None or most is None:
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(4096, 4 * limit)
    beyond = most != resource.RLIM_INFINITY and most < wanted
    hard = f" (the hard limit, {most}, has to be raised too)" if beyond else ""
    return f"raise it (ulimit -n {wanted}){hard}, or set endpoints.NAME.max_concurrency lower,"


def raise_limit() -> None:
    """Raise this process's soft limit of open files to its hard limit."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most and most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
