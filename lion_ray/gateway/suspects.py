"""Decides by other calls' results whether a refusal is the fault of the call or of the endpoint.

Invariants:
- Calls of one shape differ only in their messages' texts. Once a call of a shape was answered, a refusal is the call's
  own fault.
- The same refusal of `BY_WORDS` or `BY_NUMBER` calls of a shape, without an answer among them, is the endpoint's fault.
- No deadlock: if all calls of a shape in flight wait for a decision, each is decided by what is known.

A state machine of futures, without a clock. This module knows nothing of HTTP or of a refusal's meaning.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from lion_ray.core.errors import EndpointError
from lion_ray.gateway.calls import Failure
from lion_ray.gateway.faults import MAX_TOKENS_FIELDS

BY_WORDS = 2
"""Refusals needed if their message is about something that every call sends."""
BY_NUMBER = 5
"""Refusals needed if their message does not show the cause."""


@dataclass(frozen=True)
class Suspicion:
    """A refused call: its outcome is `failure` if it is its own fault, `error` if it is the endpoint's."""

    failure: Failure
    error: EndpointError
    by_words: bool
    """The refusal's message is about something that every call sends; believed even of a single call."""


@dataclass
class _Shape:
    answered: bool = False
    under_way: int = 0
    waiting: list[tuple[Suspicion, asyncio.Future[bool]]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


class Suspects:
    """The refused calls of one endpoint."""

    def __init__(self) -> None:
        self._shapes: dict[bytes, _Shape] = {}

    @contextmanager
    def under_way(self, shape: bytes) -> Iterator[None]:
        """Register a call of this shape until it is answered or refused."""
        here = self._shapes.setdefault(shape, _Shape())
        here.under_way += 1
        try:
            yield
        finally:
            here.under_way -= 1
            self._decide_alone(here)

    def answered(self, shape: bytes) -> None:
        """A call of this shape was answered, so the endpoint accepts the shape."""
        here = self._shapes.setdefault(shape, _Shape())
        if not here.answered:
            here.answered = True
            _decide(here, endpoints=False)

    async def judge(self, shape: bytes, suspicion: Suspicion) -> Failure:
        """Returns the call's Failure if the refusal is its own fault; raises the EndpointError if the endpoint's.

        Call it inside `under_way`.
        """
        here = self._shapes[shape]
        if here.answered:
            return suspicion.failure
        here.seen[_alike(suspicion)] += 1
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        here.waiting.append((suspicion, future))
        if here.seen[_alike(suspicion)] >= (BY_WORDS if suspicion.by_words else BY_NUMBER):
            _decide(here, endpoints=True)
        self._decide_alone(here)
        try:
            endpoints = await future
        finally:
            here.waiting = [one for one in here.waiting if one[1] is not future]
        if endpoints:
            raise EndpointError(str(suspicion.error))
        return suspicion.failure

    def _decide_alone(self, here: _Shape) -> None:
        if here.waiting and len(here.waiting) >= here.under_way:
            for suspicion, future in here.waiting:
                if not future.done():
                    future.set_result(suspicion.by_words)


def shape_of(body: dict[str, Any]) -> bytes:
    """What calls have in common that differ only in their messages' texts: fields, their values, and roles."""
    settings = {name: value for name, value in body.items() if name not in ("messages", "seed", *MAX_TOKENS_FIELDS)}
    roles = sorted({message["role"] for message in body["messages"]})
    most = [body.get(name) for name in MAX_TOKENS_FIELDS if name in body]  # by either name
    return orjson.dumps([settings, most, "seed" in body, roles], option=orjson.OPT_SORT_KEYS)


def _decide(here: _Shape, *, endpoints: bool) -> None:
    for _, future in here.waiting:
        if not future.done():
            future.set_result(endpoints)


def _alike(suspicion: Suspicion) -> str:
    """A refusal without the parts that differ between calls: numbers and ids."""
    return re.sub(r"\S*\d\S*", "#", suspicion.failure.detail)
