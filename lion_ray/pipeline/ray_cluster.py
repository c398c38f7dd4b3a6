"""Join a Ray cluster, or start Ray on this machine.

Invariants:
- If Ray does not start, its processes are cleaned up and the start is retried once; then an InfrastructureError of one
  line is raised, whatever Ray raised.
- If RAY_ADDRESS names a cluster, none is started.

This module knows only the name of a run.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray

from lion_ray.config.file import LoadedConfig
from lion_ray.core.errors import ConfigError, InfrastructureError
from lion_ray.core.process_guard import Guard, descendants
from lion_ray.core.progress import Progress
from lion_ray.models.machine import cores

T = TypeVar("T")
START_FAILURES = (Exception,)
"""A failed start of Ray has no exception class of its own: RuntimeError, TimeoutError, Exception; not Ctrl-C."""
MESSAGE_LENGTH = 300
"""Maximum length of Ray's message, in characters."""

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Time for an autoscaler to start nodes.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Engines and training are the main work: do not run them at the low priority that Ray gives its workers.
    "RAY_worker_niceness": "0",
    # Ray's messages about lost workers go to the log without colours. A dead engine's trace, repeated for each of its
    # shards, does not: the pool logs its own message.
    "RAY_COLOR_PREFIX": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
"""Ray settings that the user has not set; set them before `ray.init`. Workers inherit them."""


def join_ray(loaded: LoadedConfig, progress: Progress) -> bool:
    """Join the cluster, or start Ray here. Returns whether it was started here."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        check_reachable(address)
    else:
        # A single machine is never drained; this saves an actor at each fit, which takes seconds to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A laptop with two cores must still have room for an engine, a training worker and a few tasks.
    # "local", because Ray would otherwise join a cluster that an earlier `ray start` recorded.
    here: dict[str, Any] = {} if address else {"address": "local", "num_cpus": max(4, cores())}

    def init() -> Any:
        return ray.init(
            # Two users' runs may have the same name, and their actors' names must not collide.
            namespace=f"lion-ray-{loaded.config.run_name}-{secrets.token_hex(4)}",
            log_to_driver=False,
            logging_level="ERROR",
            **here,
        )

    if address:
        try:
            context = init()
        except ConnectionError as error:
            raise ConfigError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({first_line(error)})") from None
    else:
        context = twice(init, clean_up=partial(end_what_was_started, set(descendants(os.getpid()))), say=progress.say)
    keep_token_private()
    dashboard = getattr(context, "dashboard_url", None)
    where = f"joined the cluster at {address}" if address else "started Ray on this machine"
    # Ray requires a token, unless RAY_AUTH_MODE disables it.
    token = "" if os.environ.get("RAY_AUTH_MODE") == "disabled" else " (its token: ray get-auth-token)"
    progress.say(where + (f"; dashboard: http://{dashboard}{token}" if dashboard else ""))
    return not address


def keep_token_private() -> None:
    """Make Ray's token readable by this user only: Ray writes it with the default umask."""
    path = Path.home() / ".ray" / "auth_token"
    try:
        if path.is_file() and path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError:
        return  # another user's file, or a file system without modes


def twice(start: Callable[[], T], *, clean_up: Callable[[], None], say: Callable[[str], None]) -> T:
    """Call `start`; if Ray does not start, call `clean_up` and try once more. Clean up after the second failure too.

    Raises:
        InfrastructureError: the second attempt failed too.
    """
    try:
        return start()
    except START_FAILURES as error:
        clean_up()
        say(f"Ray did not start ({why_not(error)}); trying once more")
    try:
        return start()
    except START_FAILURES as error:
        clean_up()
        raise InfrastructureError(
            f"Ray did not start on this machine in two attempts ({why_not(error)}); correct that and run the same "
            "command to resume"
        ) from None


def why_not(error: BaseException) -> str:
    """A short reason why Ray did not start."""
    # Ray gives its agents 15 and itself 30 seconds to start: constants of its code.
    if "timed out" in str(error).lower():
        return "not within its timeout of 30 s: something else keeps the cores busy"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error, at most `MESSAGE_LENGTH` characters."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:MESSAGE_LENGTH]


def end_what_was_started(before: Container[int]) -> None:
    """Kill this process's descendants except those in `before`, and wait for their end.

    Processes that Ray started before it failed live until the driver ends, and would slow down the retry.
    """
    ray.shutdown()
    guard = Guard()
    guard.watch(*(pid for pid in descendants(os.getpid()) if pid not in before))
    guard.close()


def check_reachable(address: str) -> None:
    """Check that a server listens at a cluster's address: Ray itself would retry for many minutes.

    Raises:
        ConfigError: no server answers there.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto" and the like: Ray knows where to look
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error})") from None
