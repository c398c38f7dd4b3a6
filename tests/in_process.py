"""An actor's object called in this process the way its handle is called: for what a stage does, not for what Ray does.

Arguments that are still to come are awaited first, as references are; what a method returns or raises is its awaiter's.
"""

from __future__ import annotations

import inspect
from typing import Any


class Here:
    """`here.method.remote(...)`, as `handle.method.remote(...)`; every call is noted."""

    def __init__(self, role: object) -> None:
        self._role = role
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        """Methods and their arguments, in order."""

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)


class _Method:
    def __init__(self, here: Here, name: str) -> None:
        self._here, self._name = here, name

    def options(self, **_: Any) -> _Method:
        return self

    async def remote(self, *arguments: Any, **named: Any) -> Any:
        given = [await one if inspect.isawaitable(one) else one for one in arguments]
        self._here.calls.append((self._name, tuple(given)))
        result = getattr(self._here._role, self._name)(*given, **named)
        return await result if inspect.isawaitable(result) else result
