"""TCP ports for servers and engines, many of which may start on one machine at once.

A port is free when it is looked for, and may be taken by another process before it is used: vLLM looks for its ports
seconds before it listens on them. So processes look in different places, outside the range from which Linux gives ports
to connections, and a start that still fails is repeated with other ports.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

IN_USE = ("Address already in use", "EADDRINUSE", "Errno 98")
"""How a log says that a port was taken."""
_FIRST, _BLOCK, _BLOCKS = 20_000, 100, 100
"""Above the ports of Ray's workers (to 19,999), below those of connections (from 32,768)."""


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def first_port(number: int) -> str:
    """`VLLM_PORT`: from where vLLM looks for ports. `number`: such as the process id, differs between processes."""
    return str(_FIRST + _BLOCK * (number % _BLOCKS))


def port_was_taken(lines: Iterable[str]) -> bool:
    """Whether a log says that a port was taken by another process."""
    return any(words in line for line in lines for words in IN_USE)
