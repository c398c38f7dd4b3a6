"""TCP ports for servers and engines, many of which may start on one machine at once.

A port is free when it is looked for, and may be taken by another process before it is used: vLLM looks for its ports
seconds before it listens on them. So processes look in different places, outside the range from which Linux gives ports
to connections, and a start that still fails is repeated with other ports.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

IN_USE = ("Address already in use", "EADDRINUSE", "Errno 98")
"""How a log says that a port was taken."""
_FIRST, _BLOCK, _BLOCKS = 20_000, 100, 100
"""Above the ports of Ray's workers (to 19,999), below those of connections (from 32,768)."""
_LISTEN = range(_FIRST + _BLOCK * _BLOCKS, 32_768)
_given: set[int] = set()
"""What this process has looked up, and may not listen on yet."""


def free_port() -> int:
    """A TCP port on loopback that is free now; another one at each call."""
    # Not the seeded generator: processes with the same seed would look in the same order.
    for port in random.SystemRandom().sample(_LISTEN, len(_LISTEN)):
        if port not in _given and (found := _bound(port)):
            _given.add(found)
            return found
    return _bound(0)  # all are taken: any that the system has


def _bound(port: int) -> int:
    """The port, if a server could listen on it now, else 0."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])


def first_port(number: int) -> str:
    """`VLLM_PORT`: from where vLLM looks for ports. `number`: such as the process id, differs between processes."""
    return str(_FIRST + _BLOCK * (number % _BLOCKS))


def port_was_taken(lines: Iterable[str]) -> bool:
    """Whether a log says that a port was taken by another process."""
    return any(words in line for line in lines for words in IN_USE)
