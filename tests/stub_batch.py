"""The Batch API of the stub: files and batches as OpenAI has them, in memory, and faulty by plan.

Invariants:
- A batch goes on by being looked at, not by time: after `polls` looks it is over.
- What a batch will answer counts as bought when the batch is created, so a batch that somebody created and forgot is
  seen in the stub's `repeated`.
- It checks what a real service checks: the file's purpose, unique custom ids, the endpoint's URL.

It knows nothing of lion_ray.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

URL = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


@dataclass
class BatchPlan:
    """Faults. Lines count from 0, batches and requests from 1; attributes may be changed while the stub runs."""

    polls: int = 2
    """Looks at a batch until it is over."""
    faulty: Sequence[int] = (1,)
    """The batches that have the faults of lines and of whole batches below; the others have none."""
    expire: Sequence[int] = ()
    """Lines that are not done when the batch expires."""
    cancel: bool = False
    """What `expire` names was not done because someone cancelled the batch."""
    errors: dict[str, int] = field(default_factory=dict)
    """Lines (as text, as JSON has it) that end with this status."""
    garbled: Sequence[int] = ()
    """Lines whose answer is cut off. They are bought."""
    odd: Sequence[int] = ()
    """Lines whose status is 200, and whose body holds no answer. They are bought."""
    missing: Sequence[int] = ()
    """Lines that are in no file."""
    counted: bool = True
    """It says how many lines are done."""
    invalid: Sequence[int] = ()
    """Lines that validation names, so that the batch fails."""
    fail: str = ""
    """The code with which validation fails the whole batch."""
    uncancelled: bool = False
    """It does not know how to cancel a batch."""
    limit: int | None = None
    """Lines in batches under way at once; one more batch is failed with token_limit_exceeded."""
    upload_faults: Sequence[int] = ()
    """Uploads that are answered with 500."""
    create_faults: dict[str, str] = field(default_factory=dict)
    """Creations (as text) that end otherwise: 500 or 429 (nothing created), 400, lost (created, and no answer)."""
    poll_faults: dict[str, int] = field(default_factory=dict)
    """Looks (as text, over all batches) that get this status; a 429 asks for 7 seconds."""
    download_faults: Sequence[int] = ()
    """Downloads that break off in the middle."""
    newline: bool = True
    """Files end with one."""


class Buy(Protocol):
    def __call__(self, body: dict[str, Any], *, answered: bool) -> dict[str, Any]: ...


@dataclass
class _Batch:
    shown: dict[str, Any]
    ordinal: int
    lines: list[dict[str, Any]]
    output: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    end: str = "completed"
    looks: int = 0


class BatchRoutes:
    """The routes. `accepts` checks a request's key; `buy` counts a line and answers it."""

    def __init__(self, plan: BatchPlan, accepts: Callable[[web.Request], bool], buy: Buy) -> None:
        self.plan = plan
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, _Batch] = {}
        self.uploads = self.creations = self.looks = self.downloads = 0
        self._accepts = accepts
        self._buy = buy

    def mount(self, router: web.UrlDispatcher) -> None:
        for method, path, handler in (
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files/{id}/content", self._content),
            ("DELETE", "/v1/files/{id}", self._delete),
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._list),
            ("GET", "/v1/batches/{id}", self._look),
            ("POST", "/v1/batches/{id}/cancel", self._cancel),
        ):
            router.add_route(method, path, self._checked(handler))

    def stats(self) -> dict[str, Any]:
        return {
            "sizes": [len(batch.lines) for batch in self.batches.values()],
            "ends": [batch.shown["status"] for batch in self.batches.values()],
            "files": len(self.files),
            "uploads": self.uploads,
            "creations": self.creations,
            "looks": self.looks,
            "downloads": self.downloads,
        }

    def _checked(self, handler: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            if not self._accepts(request):
                return _error(401, f"Incorrect API key: {request.headers.get('Authorization')}.")
            response: web.StreamResponse = await handler(request)
            return response

        return handle

    # --- files

    async def _upload(self, request: web.Request) -> web.Response:
        self.uploads += 1
        form = await request.post()
        if self.uploads in self.plan.upload_faults:
            return _error(500, "oops")
        sent = form["file"]
        if form["purpose"] != "batch" or not isinstance(sent, web.FileField):
            return _error(400, "a batch's file has the purpose batch")
        return web.json_response(_file(self._keep("input", sent.file.read()), sent.filename))

    async def _content(self, request: web.Request) -> web.StreamResponse:
        data = self.files.get(request.match_info["id"])
        if data is None:
            return _error(404, "No such File object")
        self.downloads += 1
        if self.downloads not in self.plan.download_faults:
            return web.Response(body=data, content_type="application/octet-stream")
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        _break_off(request)
        return response

    async def _delete(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        if self.files.pop(file_id, None) is None:
            return _error(404, "No such File object")
        return web.json_response({"id": file_id, "object": "file", "deleted": True})

    def _keep(self, kind: str, data: bytes) -> str:
        file_id = f"file-{kind}-{len(self.files)}-{time.monotonic_ns()}"
        self.files[file_id] = data
        return file_id

    # --- batches

    async def _create(self, request: web.Request) -> web.Response:
        self.creations += 1
        asked = await request.json()
        fault = self.plan.create_faults.get(str(self.creations), "")
        if fault in ("400", "429", "500"):
            return _error(int(fault), "oops", "3" if fault == "429" else None)
        data = self.files.get(asked["input_file_id"])
        if data is None or asked["endpoint"] != URL:
            return _error(400, "no such file, or no such endpoint")
        batch = self._made(asked, [json.loads(line) for line in data.splitlines()])
        if fault == "lost":
            _break_off(request)
        return web.json_response(batch.shown)

    def _made(self, asked: dict[str, Any], lines: list[dict[str, Any]]) -> _Batch:
        ordinal = len(self.batches) + 1
        shown = {
            "id": f"batch_{ordinal}",
            "object": "batch",
            "endpoint": URL,
            "errors": None,
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "metadata": asked.get("metadata"),
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        batch = self.batches[shown["id"]] = _Batch(shown, ordinal, lines)
        errors = self._validation(batch)
        if errors:
            batch.end = "failed"
            shown["errors"] = {"object": "list", "data": errors}
        else:
            self._do(batch)
        return batch

    def _validation(self, batch: _Batch) -> list[dict[str, Any]]:
        ids = [line["custom_id"] for line in batch.lines]
        if len(set(ids)) != len(ids) or any(line["url"] != URL or line["method"] != "POST" for line in batch.lines):
            return [{"code": "duplicate_custom_id", "message": "or a wrong URL", "line": 1}]
        running = sum(len(b.lines) for b in self.batches.values() if b.shown["status"] not in OVER)
        if self.plan.limit is not None and running > self.plan.limit:
            return [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached for stub-model."}]
        if batch.ordinal not in self.plan.faulty:
            return []
        if self.plan.fail:
            return [{"code": self.plan.fail, "message": "the plan says so", "line": None}]
        return [{"code": "invalid_value", "message": "a bad line", "line": line + 1} for line in self.plan.invalid]

    def _do(self, batch: _Batch) -> None:
        """Decide every line now; they are shown when it is over."""
        faulty = batch.ordinal in self.plan.faulty
        for number, line in enumerate(batch.lines):
            undone = faulty and (number in self.plan.expire or number in self.plan.missing)
            status = self.plan.errors.get(str(number), 200) if faulty else 200
            body = self._buy(line["body"], answered=status == 200 and not undone)
            if faulty and number in self.plan.missing:
                continue
            if undone:
                code = "batch_cancelled" if self.plan.cancel else "batch_expired"
                error = {"code": code, "message": "This request could not be executed."}
                batch.errors.append(_result(number, line, None, error))
            elif status != 200:
                failed = {"error": {"message": f"a planned {status}", "type": "error", "code": None}}
                batch.errors.append(_result(number, line, {"status_code": status, "body": failed}, None))
            else:
                body = {"choices": []} if faulty and number in self.plan.odd else body
                text = _result(number, line, {"status_code": 200, "body": body}, None)
                batch.output.append(text[: len(text) // 2] if faulty and number in self.plan.garbled else text)
        if faulty and self.plan.expire:
            batch.end = "cancelled" if self.plan.cancel else "expired"
        # Services answer in any order.
        batch.output.reverse()

    async def _look(self, request: web.Request) -> web.Response:
        self.looks += 1
        status = self.plan.poll_faults.get(str(self.looks))
        if status is not None:
            return _error(status, "please slow down", "7" if status == 429 else None)
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return _error(404, "No batch found")
        batch.looks += 1
        if batch.shown["status"] not in OVER:
            batch.shown["status"] = "in_progress"
            if batch.looks >= self.plan.polls or batch.end == "failed":
                self._finish(batch)
        return web.json_response(batch.shown)

    def _finish(self, batch: _Batch) -> None:
        end = "\n" if self.plan.newline else ""
        batch.shown["status"] = batch.end
        batch.shown["request_counts"] |= {"completed": len(batch.output), "failed": len(batch.errors)}
        if not self.plan.counted:
            batch.shown["request_counts"] = None
        for name, lines in (("output", batch.output), ("error", batch.errors)):
            if lines:
                batch.shown[f"{name}_file_id"] = self._keep(name, ("\n".join(lines) + end).encode())

    async def _list(self, request: web.Request) -> web.Response:
        """Newest first, in pages."""
        found = [batch.shown for batch in reversed(self.batches.values())]
        after = request.query.get("after")
        if after is not None:
            found = found[[shown["id"] for shown in found].index(after) + 1 :]
        # Small pages, so that few batches are many pages.
        limit = min(2, int(request.query.get("limit", 20)))
        page = found[:limit]
        return web.json_response({"object": "list", "data": page, "has_more": len(found) > limit})

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["id"])
        if batch is None or self.plan.uncancelled:
            return _error(404, "No batch found")
        if batch.shown["status"] not in OVER:
            batch.end = "cancelled"
            batch.shown["status"] = "cancelling"
        return web.json_response(batch.shown)


def _result(number: int, line: dict[str, Any], response: dict[str, Any] | None, error: Any) -> str:
    given = None if response is None else {"request_id": f"req_{number}", **response}
    return json.dumps({"id": f"batch_req_{number}", "custom_id": line["custom_id"], "response": given, "error": error})


def _file(file_id: str, name: str) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": 0,
        "created_at": 0,
        "filename": name,
        "purpose": "batch",
        "status": "processed",
    }


def _break_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()
    raise asyncio.CancelledError


def _error(status: int, message: str, retry_after: str | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return web.json_response({"error": {"message": message, "code": None}}, status=status, headers=headers)
