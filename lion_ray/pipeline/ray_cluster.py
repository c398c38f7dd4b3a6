"""Joins a Ray cluster, or starts Ray on this machine.

Invariants:
- A Ray that does not come up is tried once more, on a machine without what the first try left behind; then it is an
  InfrastructureError in one line, whatever Ray raised.
- Where RAY_ADDRESS names a cluster, none is started.

This module knows nothing of runs but their name.
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
"""What Ray raises where it does not come up has no class of its own: RuntimeError, TimeoutError, Exception itself.
Ctrl-C is none of them."""
TOLD = 300
"""Characters of what Ray said."""

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Room for an autoscaler to bring nodes up.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Engines and training are what this machine is here for: not at the low priority that Ray gives its workers.
    "RAY_worker_niceness": "0",
    # What Ray says of lost workers belongs in the log, without colours; a dead engine's trace, once for each shard that
    # it was at, does not: the pool says what it does about it.
    "RAY_COLOR_PREFIX": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
"""How a driver sets Ray up, where the user has not; to be set before `ray.init`, and workers inherit it."""


def join_ray(loaded: LoadedConfig, progress: Progress) -> bool:
    """Join the cluster, or start Ray here; returns whether it was started here."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        check_reachable(address)
    else:
        # No node of one machine is drained before it goes: an actor less at each fit, which takes seconds to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # A laptop with two cores must still have room for an engine, a training worker and a few tasks.
    # "local", as Ray would else join what somebody's `ray start` has left a note of.
    here: dict[str, Any] = {} if address else {"address": "local", "num_cpus": max(4, cores())}

    def init() -> Any:
        return ray.init(
            # Two people's runs may have one name, and their actors' names must not meet.
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
    # Ray asks everybody for a token, unless RAY_AUTH_MODE says otherwise.
    token = "" if os.environ.get("RAY_AUTH_MODE") == "disabled" else " (its token: ray get-auth-token)"
    progress.say(where + (f"; dashboard: http://{dashboard}{token}" if dashboard else ""))
    return not address


def keep_token_private() -> None:
    """Let nobody else read the token that Ray asks for: it writes it with whatever the umask is."""
    path = Path.home() / ".ray" / "auth_token"
    try:
        if path.is_file() and path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError:
        return  # somebody else's, or a file system without modes: not ours to change


def twice(start: Callable[[], T], *, clean_up: Callable[[], None], say: Callable[[str], None]) -> T:
    """What `start` returns; where Ray does not come up, once more after `clean_up`, which is called then too.

    Raises:
        InfrastructureError: nor did it come up the second time.
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
            f"Ray did not start on this machine, nor when it was tried again ({why_not(error)}); mend that and run the "
            "same command: it goes on"
        ) from None


def why_not(error: BaseException) -> str:
    """In a few words, why Ray did not start."""
    # Ray gives its agents 15 and itself 30 seconds to start: constants of its code.
    if "timed out" in str(error).lower():
        return "not within the time that it gives itself, 30 s: something else keeps the cores busy"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, at most `TOLD` characters of it."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:TOLD]


def end_what_was_started(before: Container[int]) -> None:
    """Kill this process's descendants but for those of `before`, and wait for their end.

    What Ray had started before it gave up lives on until its driver ends, and would keep the cores from the next try.
    """
    ray.shutdown()
    guard = Guard()
    guard.watch(*(pid for pid in descendants(os.getpid()) if pid not in before))
    guard.close()


def check_reachable(address: str) -> None:
    """See that somebody listens at a cluster's address: Ray itself would try for many minutes.

    Raises:
        ConfigError: nobody does.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto" and the like: Ray knows where to look
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error})") from None
