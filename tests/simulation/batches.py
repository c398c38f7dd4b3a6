"""The simulated endpoint's Batch API, which outlives every process.

Invariants:
- A request arrives a while after it was sent, even if its process ends meanwhile; the answer arrives a while later.
- The result of a batch is decided and billed line by line when it is over, whoever hears of it.
- The list of batches knows a batch as soon as it is created; its id may be unknown for some seconds more.

It replaces `lion_ray.gateway.batch.api`, whose HTTP has its own tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from openai.types import Batch

from lion_ray.gateway.batch.api import NONCE, OVER, BatchAPI, Gone
from lion_ray.gateway.wire import (
    CONNECTION_LOST,
    GARBLED,
    TIMED_OUT,
    Transient,
    TransportError,
    Unreachable,
    status_error,
)
from tests.simulation.model import Purchase, Violation

if TYPE_CHECKING:
    from tests.simulation.world import Process, World

ADDRESS = "http://127.0.0.1:1/v1"
LINE_FATES = ("expired", "500", "429", "unreadable", "garbled", "missing")
FAILURES: tuple[list[dict[str, Any]], ...] = (
    [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}],
    [{"code": "invalid_json_line", "message": "not a valid line", "line": 1}],
    [],
)
HIDDEN_S = 10.0
"""A batch's id is known at most this long after its creation."""
_T = TypeVar("_T")


@dataclass
class _Made:
    """A batch at the endpoint."""

    shown: Batch
    process: Process
    lines: list[tuple[dict[str, Any], Purchase]]
    known_at: float
    tells_counts: bool
    cancelled: bool = False
    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)


class Service:
    """What the endpoint knows: files and batches."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, _Made] = {}
        self._kept = 0
        self._faulty = world.rng.choice((0.0, 0.0, 0.1, 0.4))
        """How likely a batch leaves a line without an answer, in any weather."""

    def keep(self, kind: str, data: bytes) -> str:
        self._kept += 1
        file_id = f"file-{kind}-{self._kept}"
        self.files[file_id] = data
        return file_id

    def create(self, process: Process, file_id: str, nonce: str) -> Batch:
        if (data := self.files.get(file_id)) is None:
            raise status_error(400, {}, "no such file")
        world, batch_id = self._world, f"batch-{len(self.batches)}"
        lines = []
        for line in map(orjson.loads, data.splitlines()):
            prompt = str(line["body"]["messages"][0]["content"])
            lines.append((line, world.model.sent(process, prompt, batch_id)))
        shown = Batch(
            id=batch_id,
            object="batch",
            endpoint="/v1/chat/completions",
            input_file_id=file_id,
            completion_window="24h",
            status="validating",
            created_at=int(world.now),
            metadata={NONCE: nonce},
        )
        stormy = world.weather.strikes(world.rng)
        known_at = world.now + (world.rng.random() * HIDDEN_S if stormy else 0.0)
        made = self.batches[batch_id] = _Made(shown, process, lines, known_at, world.rng.random() < 0.8)
        world.say(f"{batch_id} of {process.name}: {', '.join(purchase.prompt for _, purchase in lines)}")
        if world.weather.strikes(world.rng):
            errors = world.rng.choice(FAILURES)
            world.later(world.rng.random() * 5, lambda: self._fail(made, errors))
        else:
            world.later(world.rng.random() * 5, lambda: self._begin(made))
            world.later(world.rng.random() * world.rng.choice((1, 10, 40)), lambda: self._finish(made))
        return shown.model_copy()

    def look(self, batch_id: str) -> Batch:
        made = self.batches[batch_id]
        if self._world.now < made.known_at:
            raise Gone("no such batch")
        return made.shown.model_copy()

    def cancel(self, batch_id: str) -> Batch:
        made = self.batches[batch_id]
        if made.shown.status not in OVER:
            made.cancelled, made.shown.status = True, "cancelling"
        return made.shown.model_copy()

    def holds(self, purchase: Purchase) -> bool:
        """Whether what was bought in a batch can still be fetched."""
        shown = self.batches[purchase.batch].shown
        return shown.output_file_id is None or shown.output_file_id in self.files

    def check_left(self, process: Process) -> None:
        """What a process that has closed for good leaves behind."""
        for made in self.batches.values():
            goes_on = made.process is process and made.shown.status in ("validating", "in_progress")
            wanted = not all(purchase.handed_out for _, purchase in made.lines)
            # A cancellation is requested once, and may be lost in a storm.
            certain = not self._world.weather.storm and made.shown.created_at < self._world.now - HIDDEN_S
            if goes_on and wanted and certain:
                raise Violation(f"{process.name} has closed for good, and {made.shown.id} is still in progress")

    def _begin(self, made: _Made) -> None:
        if made.shown.status == "validating":
            made.shown.status = "in_progress"

    def _fail(self, made: _Made, errors: list[dict[str, Any]]) -> None:
        told = made.shown.model_dump() | {"status": "failed", "errors": {"data": errors, "object": "list"}}
        made.shown = Batch.model_validate(told)
        for _, purchase in made.lines:
            purchase.undone = True
        self._world.say(f"{made.shown.id} is failed: {errors}")

    def _finish(self, made: _Made) -> None:
        world, rng = self._world, self._world.rng
        fates = []
        for line, purchase in made.lines:
            fate = rng.choice(LINE_FATES) if rng.random() < self._faulty else "ok"
            if world.weather.strikes(rng):
                fate = "rejected"
            if made.cancelled and rng.random() < 0.5:
                fate = "expired"
            fates.append(fate)
            self._do(made, line, purchase, fate)
        rng.shuffle(made.output)  # services answer in any order
        counts = None
        if made.tells_counts:
            done = sum(purchase.text is not None for _, purchase in made.lines)
            counts = {"completed": done, "failed": len(fates) - done, "total": len(fates)}
        status = "cancelled" if made.cancelled else "expired" if "expired" in fates else "completed"
        made.shown = Batch.model_validate(made.shown.model_dump() | {"status": status, "request_counts": counts})
        if made.output:
            made.shown.output_file_id = self.keep("output", b"\n".join(made.output))
        if made.errors:
            made.shown.error_file_id = self.keep("error", b"\n".join(made.errors) + b"\n")
        world.say(f"{made.shown.id} is {status}: {', '.join(fates)}")

    def _do(self, made: _Made, line: dict[str, Any], purchase: Purchase, fate: str) -> None:
        rng, told = self._world.rng, {"custom_id": line["custom_id"], "response": None, "error": None}
        if fate == "expired":
            purchase.undone = True
            made.errors.append(orjson.dumps(told | {"error": {"code": "batch_expired", "message": "not executed"}}))
            return
        if fate in ("500", "429", "rejected"):
            purchase.undone = True
            status = 400 if fate == "rejected" else int(fate)
            failed = {"status_code": status, "body": {"error": {"message": "not this one"}}}
            made.errors.append(orjson.dumps(told | {"response": failed}))
            return
        usage = {
            "prompt_tokens": rng.randint(1, len(purchase.prompt.encode())),
            "completion_tokens": rng.randint(1, line["body"]["max_tokens"]),
        }
        purchase.spoilt = fate != "ok"
        text = self._world.model.bill(purchase, **usage)
        if fate == "missing" and not made.tells_counts:
            self._world.model.forgive(purchase)  # nothing tells that it was done
        choices = [] if fate == "unreadable" else [{"message": {"content": text}, "finish_reason": "stop"}]
        body = {"model": "simulated", "choices": choices, "usage": usage}
        data = orjson.dumps(told | {"response": {"status_code": 200, "body": body}})
        if fate != "missing":
            made.output.append(data[: len(data) // 2] if fate == "garbled" else data)


class SimBatchAPI(BatchAPI):
    """One process's connection to the service."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process
        self.address = ADDRESS

    async def close(self) -> None:
        """There is no connection to close."""

    async def upload(self, name: str, data: bytes) -> str:
        return await self._request("upload", lambda: self._world.service.keep("input", data))

    async def create(self, file_id: str, nonce: str, window: str) -> Batch:
        return await self._request("create", lambda: self._world.service.create(self._process, file_id, nonce))

    async def retrieve(self, batch_id: str) -> Batch:
        return await self._request("retrieve", lambda: self._world.service.look(batch_id))

    async def cancel(self, batch_id: str) -> Batch:
        return await self._request("cancel", lambda: self._world.service.cancel(batch_id))

    async def find(self, nonce: str, since: float) -> Batch | None:
        def look() -> Batch | None:
            found = (made.shown for made in self._world.service.batches.values())
            return next((one.model_copy() for one in found if one.metadata == {NONCE: nonce}), None)

        return await self._request("find", look)

    async def download(self, file_id: str, write: Callable[[bytes], None]) -> None:
        def send() -> bytes:
            data = self._known(file_id)
            for made in self._world.service.batches.values():
                if made.shown.output_file_id == file_id:
                    for _, purchase in made.lines:
                        purchase.fetched_by.add(self._process)
            return data

        data = await self._request("download", send)
        half = len(data) // 2
        write(data[:half])
        await asyncio.sleep(self._world.rng.random() * self._world.weather.latency_s)
        if self._world.weather.strikes(self._world.rng):
            raise Transient(CONNECTION_LOST, "cut off")
        write(data[half:])

    async def delete(self, file_id: str) -> None:
        def remove() -> None:
            self._known(file_id)
            del self._world.service.files[file_id]

        await self._request("delete", remove)

    def redact(self, text: bytes) -> bytes:
        return text

    def _known(self, file_id: str) -> bytes:
        data = self._world.service.files.get(file_id)
        if data is None:
            raise Gone("no such file")
        return data

    async def _request(self, what: str, act: Callable[[], _T]) -> _T:
        """Have the service do something, in the current weather."""
        world, fate = self._world, self._world.weather.fate(self._world.rng)
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        world.say(f"{self._process.name}: {what}: {fate}")

        def arrives() -> None:
            error: TransportError | None = None
            match fate:
                case "unreachable":
                    error = Unreachable("nobody listens")
                case "429":
                    error = status_error(429, {"retry-after": str(world.rng.choice((0, 1, 7)))}, "")
                case "500":
                    error = status_error(500, {}, "it broke")
                case "rejected":
                    error = status_error(503, {}, "not now")
                case "timed out" | "lost" if world.rng.random() < 0.5:
                    error = Transient(CONNECTION_LOST, "reset")
            result = None
            if error is None:
                try:
                    result = act()
                except TransportError as cause:
                    error = cause
            if error is None and fate in ("timed out", "lost", "garbled"):
                error = Transient(GARBLED if fate == "garbled" else TIMED_OUT, fate)
            world.later(world.rng.random() * world.weather.latency_s, lambda: self._hear(answer, result, error))

        world.later(world.rng.random() * world.weather.latency_s, arrives)
        return await answer

    def _hear(self, answer: asyncio.Future[Any], result: Any, error: TransportError | None) -> None:
        if not self._process.alive or answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)
