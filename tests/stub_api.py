"""A real HTTP server that behaves like other people's services: OpenAI-compatible, and faulty by plan.

Invariants:
- An answer depends on the request's body alone, so two runs of anything meet the same answers.
- Every request is counted by its canonical body (JSON, sorted keys) at arrival, and as completed once its whole answer
  was written: `repeated` in the stats names what was bought twice.
- The first rule that matches a request decides its fault; without one it is answered.

It knows nothing of lion_ray: roles are recognised by phrases in the messages (`REFEREE_MARKERS`, `GENERATOR_MARKERS`,
or others given to it).

As a process: ``python -m tests.stub_api --port 0 --lion`` prints its base URL on the first line. In a test's own event
loop: ``async with StubAPI() as stub``. From a test without a loop: ``with stub_process("--lion") as base_url``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import hashlib
import json
import math
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from tests.stub_batch import BatchPlan, BatchRoutes

# Phrases of Lion's prompts, in lower case; a test holds them against the built-in templates.
REFEREE_MARKERS = ("answer of assistant 1", "answer of assistant 2")
"""All of them occur in what a referee is asked."""
GENERATOR_MARKERS = ("you invent", "one new task")
"""One of them occurs in a generator's system message."""

_WORD_LIST = (
    "explain describe compare summarize design list invent translate classify sketch river engine market violin "
    "glacier recipe compiler orchard treaty lantern molecule harbour festival algorithm blanket volcano library "
    "bicycle senate pottery galaxy antenna bakery coral desert empire fossil garden hammer island jungle kettle "
    "lobster meadow nebula oyster piano quarry rocket saddle temple umbrella valley window yacht zebra amber brass "
    "copper velvet ancient brittle careful distant eager fragile gentle hollow idle joyful kindly lively modest narrow "
    "opaque patient quiet rapid silent tender urgent vivid wooden young beneath beside during toward without against "
    "between through children farmers sailors teachers doctors painters pilots writers winter summer morning midnight "
    "budget journey mistake promise secret shadow signal spirit stranger triumph whisper wisdom poem letter speech "
    "proof theorem equation variable diagram melody rhythm novel chapter insect feather thunder"
)
_WORDS = _WORD_LIST.split()


class Answer(NamedTuple):
    """What a model says: its text, cut after `max_tokens` words by the server."""

    text: str
    finish_reason: str = "stop"


@dataclass
class Rule:
    """When a request meets a fault.

    `fault`: late (answered `late_s` seconds later), 400, 401, 404, 429, any 5xx, quota, hang, close (mid-body), drop
    (before any byte), garbage, no_choices, empty, length, content_filter. `contains`: only requests with this text in
    their body. `ordinals`: only these requests, counted from 1 over all. `times`: only so often, in all or (`per_body`)
    for each body. `retry_after`: the header's value; ``date:N`` for an HTTP date N seconds ahead.
    """

    fault: str
    contains: str = ""
    ordinals: Sequence[int] = ()
    times: int | None = None
    per_body: bool = False
    retry_after: str | None = None
    late_s: float = 0.3
    hits: Counter[str] = field(default_factory=Counter)

    def applies(self, ordinal: int, text: str, digest: str) -> bool:
        who = digest if self.per_body else ""
        if self.contains not in text or (self.ordinals and ordinal not in self.ordinals):
            return False
        if self.times is not None and self.hits[who] >= self.times:
            return False
        self.hits[who] += 1
        return True


def canonical_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def plain_answer(body: dict[str, Any]) -> Answer:
    """5 to 30 words that depend on the body."""
    rng = random.Random(canonical_digest(body))
    return Answer(" ".join(rng.choices(_WORDS, k=rng.randint(5, 30))).capitalize() + ".")


def lion_answer(
    body: dict[str, Any],
    referee_markers: Sequence[str] = REFEREE_MARKERS,
    generator_markers: Sequence[str] = GENERATOR_MARKERS,
) -> Answer:
    """What Lion's roles expect: a rubric, decisions on one, two scores, a new instruction, or an answer."""
    said = " ".join(_said(body)).lower()
    system = " ".join(_said(body, "system")).lower()
    rng = random.Random(canonical_digest(body))
    if all(marker.lower() in said for marker in referee_markers):
        first, second = rng.randint(1, 10), rng.randint(1, 10)
        if "response_format" in body:
            explained = {"explanation": "Both were read."} if "explanation" in json.dumps(body) else {}
            return Answer(json.dumps({**explained, "assistant_1": first, "assistant_2": second}))
        return Answer(f"{first} {second}")
    if "marking schemes" in system:
        listed = [{"criterion": f"It says {word}.", "points": rng.randint(1, 5)} for word in rng.sample(_WORDS, k=4)]
        return Answer(json.dumps({"criteria": listed}))
    if "whether the answer meets it" in system:
        return Answer(json.dumps({"answers": _checked("\n".join(_said(body)))}))
    if any(marker.lower() in system for marker in generator_markers):
        return Answer(" ".join(rng.sample(_WORDS, k=rng.randint(8, 14))).capitalize() + ".")
    return plain_answer(body)


def _checked(said: str) -> list[dict[str, Any]]:
    """An answer meets a criterion or not by a hash of both: equal pairs get the same decision in every call."""
    framed = {name: re.findall(rf"\[{name} begins \w+\]\n(.*?)\n\[{name} ends", said, re.S)[0] for name in _CHECKED}
    criteria, answers = (framed[name].split("\n") for name in _CHECKED)
    texts = [[line.split(": ", 1)[1] for line in lines] for lines in (criteria, answers)]
    met = [[hashlib.sha256(f"{one} {text}".encode()).digest()[0] % 2 == 0 for one in texts[0]] for text in texts[1]]
    return [{"answer": number, "met": each} for number, each in enumerate(met, 1)]


_CHECKED = ("criteria", "answers")
_ONE_WORD = re.compile(r"reply with one word: ([\w, ]+)")


def lion_or_known(body: dict[str, Any], known: Sequence[tuple[Sequence[str], str]], *markers: Sequence[str]) -> Answer:
    """What is known of a request with all of its phrases; one of the words where one is asked for; else `lion_answer`.

    `known`: phrases, and the answer to the request that has all of them.
    """
    said = "\n".join(_said(body))
    for phrases, text in known:
        if all(phrase in said for phrase in phrases):
            return Answer(text)
    if (asked := _ONE_WORD.search(said.lower())) is not None:
        return Answer(random.Random(canonical_digest(body)).choice(re.split(r", | or ", asked[1])))
    return lion_answer(body, *markers)


def _said(body: dict[str, Any], role: str | None = None) -> Iterator[str]:
    for message in body.get("messages", ()):
        if role is None or message.get("role") == role:
            content = message.get("content")
            yield content if isinstance(content, str) else json.dumps(content)


class StubAPI:
    """The server. Attributes may be changed while it runs."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        *,
        answer: Callable[[dict[str, Any]], Answer] = plain_answer,
        latency_s: float = 0.0,
        api_key: str | None = None,
        models: Sequence[str] = (),
        batch: BatchPlan | None = None,
    ) -> None:
        """`api_key`: any other key gets a 401 that quotes it, as some services do. `models`: any other gets a 404.
        `batch`: it has a Batch API, with these faults."""
        self.rules = list(rules)
        self.answer = answer
        self.latency_s = latency_s
        self.usage: Callable[[dict[str, Any]], Any] | None = None
        """What it says that a request took, in place of the truth."""
        self.api_key = api_key
        self.models = list(models)
        self.gate = asyncio.Event()
        """Cleared, it holds every request that arrives until it is set again."""
        self.gate.set()
        self.requests: list[dict[str, Any]] = []
        """The bodies in the order of arrival."""
        self.batches = None if batch is None else BatchRoutes(batch, self._accepts, self._buys)
        self.base_url = ""
        self._by_body: Counter[str] = Counter()
        self._completed: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._in_flight = 0
        self._max_in_flight = 0
        self._changed = asyncio.Condition()
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> StubAPI:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stub/stats", self._stats)
        if self.batches is not None:
            self.batches.mount(app.router)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        self._stopping.set()
        self.gate.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Return once `condition(stats)` holds; for tests in the same event loop."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self.stats()))

    def stats(self) -> dict[str, Any]:
        return {
            "total": self._by_body.total(),
            "completed": self._completed.total(),
            "distinct": len(self._by_body),
            "by_body": dict(self._by_body),
            "completed_by_body": dict(self._completed),
            "repeated": {digest: n for digest, n in self._completed.items() if n > 1},
            "statuses": dict(self._statuses),
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
            "batch": {} if self.batches is None else self.batches.stats(),
        }

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats())

    async def _models(self, request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model"} for name in self.models or ["stub-model"]]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text)
        digest = canonical_digest(body)
        self.requests.append(body)
        self._by_body[digest] += 1
        ordinal = len(self.requests)
        await self._count(+1)
        try:
            await self.gate.wait()
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            # The rules look at the text as it was written, whatever JSON escapes.
            rule = next((r for r in self.rules if r.applies(ordinal, "\n".join(_said(body)), digest)), None)
            response = await self._respond(request, body, rule)
            # What is written whole is paid for; counted only then.
            await response.prepare(request)
            await response.write_eof()
            self._statuses[str(response.status)] += 1
            if response.status == 200 and (rule is None or rule.fault in _GOOD):
                self._completed[digest] += 1
            return response
        finally:
            await self._count(-1)

    async def _count(self, change: int) -> None:
        self._in_flight += change
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        async with self._changed:
            self._changed.notify_all()

    async def _respond(self, request: web.Request, body: dict[str, Any], rule: Rule | None) -> web.Response:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.api_key is not None and given != self.api_key:
            return _error(401, f"Incorrect API key provided: {given}.", code="invalid_api_key")
        if self.models and body.get("model") not in self.models:
            return _error(404, f"The model `{body.get('model')}` does not exist", code="model_not_found")
        fault = rule.fault if rule is not None else ""
        payload = json.dumps(self._completion(body, fault)).encode()
        match fault:
            case "late":
                assert rule is not None
                await asyncio.sleep(rule.late_s)
            case "hang":
                await self._stopping.wait()
                return _error(503, "stopping")
            case "close" | "drop":
                await self._break_off(request, payload if fault == "close" else b"")
            case "garbage":
                return web.Response(body=b"upstream: " + given.encode())
            case "no_choices":
                return web.json_response({"error": {"message": "the upstream is overloaded", "code": 502}})
            case "400":
                message = "This model's maximum context length is 16 tokens."
                return _error(400, message, code="context_length_exceeded")
            case "401":
                return _error(401, f"Incorrect API key provided: {given}.", code="invalid_api_key")
            case "404":
                return _error(404, f"The model `{body.get('model')}` does not exist", code="model_not_found")
            case "quota":
                return _error(429, "You exceeded your current quota.", code="insufficient_quota")
            case status if status == "429" or (status.isdecimal() and status[0] == "5"):
                assert rule is not None
                return _error(int(fault), "please slow down" if fault == "429" else "oops", rule.retry_after)
        return web.Response(body=payload, content_type="application/json")

    def _accepts(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.api_key is None or given == self.api_key

    def _buys(self, body: dict[str, Any], *, answered: bool) -> dict[str, Any]:
        """Count a line of a batch as a request of its own; the answer to it."""
        digest = canonical_digest(body)
        self._by_body[digest] += 1
        self._completed[digest] += answered
        return self._completion(body, "")

    async def _break_off(self, request: web.Request, payload: bytes) -> None:
        """Close the connection after half of the answer, or before any of it."""
        if payload:
            response = web.StreamResponse(headers={"Content-Length": str(len(payload))})
            await response.prepare(request)
            await response.write(payload[: len(payload) // 2])
        if request.transport is not None:
            request.transport.close()
        raise asyncio.CancelledError

    def _completion(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        answer = Answer("") if fault == "empty" else self.answer(body)
        words = answer.text.split(" ") if answer.text else []
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
        finish = fault if fault in ("length", "content_filter") else answer.finish_reason
        if fault == "length":
            limit = min(limit, max(1, len(words) // 2))
        if len(words) > limit:
            words, finish = words[:limit], "length"
        prompt = sum(len(said.split()) for said in _said(body))
        return {
            "id": "chatcmpl-" + canonical_digest(body)[:12],
            "object": "chat.completion",
            "created": 0,
            "model": f"{body.get('model')}-0001",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": " ".join(words)},
                    "logprobs": _logprobs(words, body.get("top_logprobs", 0)) if body.get("logprobs") else None,
                    "finish_reason": finish,
                }
            ],
            "usage": self.usage(body)
            if self.usage is not None
            else {
                "prompt_tokens": prompt,
                "completion_tokens": len(words),
                "total_tokens": prompt + len(words),
                "prompt_tokens_details": {"cached_tokens": prompt // 2},
            },
        }


def _logprobs(words: Sequence[str], top: int) -> dict[str, Any]:
    """A token for each word, with probability 0.75; a whole number's neighbours share the rest."""
    content = []
    for place, word in enumerate(words):
        token = word if place == 0 else f" {word}"
        others = [token]
        if word.isdigit():
            others += [token.replace(word, str(int(word) + step)) for step in (-1, 1)]
        likely = [{"token": o, "logprob": math.log(0.75 if o == token else 0.125)} for o in others]
        content.append({**likely[0], "bytes": list(token.encode()), "top_logprobs": likely[:top]})
    return {"content": content}


_GOOD = ("late", "empty", "length", "content_filter")


def _error(status: int, message: str, retry_after: str | None = None, code: str | None = None) -> web.Response:
    headers = {}
    if retry_after is not None and retry_after.startswith("date:"):
        # Both headers from one instant, so that their difference is exact.
        now = int(time.time())
        headers["Date"] = email.utils.formatdate(now, usegmt=True)
        retry_after = email.utils.formatdate(now + int(retry_after.removeprefix("date:")), usegmt=True)
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    error = {"message": message, "type": code or "error", "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


@contextlib.contextmanager
def stub_process(*options: str) -> Iterator[str]:
    """A stub in a process of its own; gives its base URL. Ended at the end."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "tests.stub_api", "--port", "0", *options]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().strip()
            if not base_url:
                raise RuntimeError(f"the stub did not start: {command}")
            yield base_url
        finally:
            process.terminate()


def fetch_stats(base_url: str) -> dict[str, Any]:
    """The stats of a stub anywhere, by its base URL."""
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stub/stats") as response:
        stats: dict[str, Any] = json.load(response)
    return stats


async def _serve(stub: StubAPI, port: int, gate: Path | None) -> None:
    if gate is not None:
        stub.gate.clear()
    await stub.start(port)
    print(stub.base_url, flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    while gate is not None and not ended.is_set() and not stub.gate.is_set():
        await asyncio.sleep(0.05)
        if gate.exists():
            stub.gate.set()
    await ended.wait()
    await stub.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server with planned faults.")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--gate", type=Path, help="a file: every request that arrives is held until it is there")
    parser.add_argument("--api-key", default=None, help="the only key that is accepted")
    parser.add_argument("--model", action="append", default=[], help="a known model (repeatable); none: all are known")
    parser.add_argument("--rules", default="[]", help='JSON: [{"fault": "429", "times": 1, "retry_after": "1"}, ...]')
    parser.add_argument(
        "--batch", help='JSON: {"polls": 3, ...}: a Batch API with this plan; "{}" for one without faults'
    )
    parser.add_argument("--lion", action="store_true", help="answer as teacher, referee and generator")
    parser.add_argument("--referee-marker", action="append", help="phrases that all occur in a referee's prompt")
    parser.add_argument(
        "--generator-marker", action="append", help="phrases of which one occurs in a generator's system message"
    )
    parser.add_argument(
        "--known", default="[]", help='with --lion, JSON: [[["a phrase", "another"], "the answer"], ...]'
    )
    given = parser.parse_args()
    referee = tuple(given.referee_marker or REFEREE_MARKERS)
    generator = tuple(given.generator_marker or GENERATOR_MARKERS)

    known = json.loads(given.known)

    def answer(body: dict[str, Any]) -> Answer:
        return lion_or_known(body, known, referee, generator) if given.lion else plain_answer(body)

    async def run() -> None:
        stub = StubAPI(
            [Rule(**rule) for rule in json.loads(given.rules)],
            answer=answer,
            latency_s=given.latency_ms / 1000,
            api_key=given.api_key,
            models=given.model,
            batch=BatchPlan(**json.loads(given.batch)) if given.batch else None,
        )
        await _serve(stub, given.port, given.gate)

    asyncio.run(run())


if __name__ == "__main__":
    main()
