"""An OpenAI-compatible endpoint that simulates every role on tasks with known answers.

Invariants:
- The role is read from lion-ray's own prompt; a prompt that cannot be parsed is answered with 400 and counted.
- An answer depends only on the request's body and the settings: a resumed run gets the same answers.

`python -m bench.learning.endpoint` prints its base URL on the first line, and ends when its standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from bench.harness import ROOT
from bench.learning.asked import Asked, ToGenerator, ToReferee, ToRubricator, ToVerifier, UnreadError, asked
from bench.learning.rubrics import criteria, decided
from bench.learning.world import Task, judged, read, rng_of, tasks, taught

START_S = 60.0


@dataclass(frozen=True, slots=True)
class Nature:
    """How the simulated roles behave."""

    seed: int = 0
    teacher_error: float = 0.0
    """The share of tasks that the teacher answers wrongly."""
    judge_noise: float = 0.0
    """The standard deviation of a score, in points of ten; of a verifier's certainty, in tenths."""
    families: str = "seed"
    """The family of the generator's tasks: the seed's, or (`random`) any."""


class Roles:
    """The roles' replies, and counts of their calls."""

    def __init__(self, nature: Nature) -> None:
        self.nature = nature
        self.counts: Counter[str] = Counter()

    def reply(self, body: dict[str, Any]) -> str:
        """The answer to a chat completion request. Raises UnreadError."""
        try:
            question = asked(body["messages"])
            task = _task(question)
        except UnreadError:
            self.counts["unread calls"] += 1
            raise
        text, role = self._answer(question, task, body)
        self.counts[f"{role} calls"] += 1
        self.counts[f"{role} prompt tokens"] += sum(tokens(one["content"]) for one in body["messages"])
        self.counts[f"{role} completion tokens"] += tokens(text)
        return text

    def _answer(self, question: Asked, task: Task, body: dict[str, Any]) -> tuple[str, str]:
        nature = self.nature
        if isinstance(question, ToReferee):
            return question.reply(*judged(task, question.answers, nature.judge_noise, nature.seed)), "referee"
        if isinstance(question, ToGenerator):
            rng = rng_of("generator", nature.seed, question.kind, task.instruction, body.get("seed"))
            family = None if nature.families == "random" else task.family
            return next(tasks(rng, family, known=[task.instruction])).instruction, "generator"
        if isinstance(question, ToRubricator):
            listed = [{"criterion": text, "points": points} for text, points in criteria(question.reference)]
            return json.dumps({"criteria": listed}), "rubricator"
        if isinstance(question, ToVerifier):
            met = [decided(question.criteria, one, nature.judge_noise, nature.seed) for one in question.answers]
            rows = [{"answer": number, "met": each} for number, each in enumerate(met, 1)]
            return json.dumps({"answers": rows}), "verifier"
        return taught(task, nature.teacher_error, nature.seed), "teacher"


def _task(question: Asked) -> Task:
    task = read(question.instruction)
    if task is None:
        raise UnreadError(f"not a known task: {question.instruction[:80]!r}")
    return task


def tokens(text: str) -> int:
    """The approximate number of tokens in a text: words and punctuation."""
    return len(re.findall(r"\w+|[^\w\s]", text))


# --- the server


class Server:
    """The roles behind HTTP."""

    def __init__(self, roles: Roles) -> None:
        self.roles = roles

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/stats", self._stats)
        return app

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(dict(self.roles.counts))

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            text = self.roles.reply(body)
        except UnreadError as error:
            return web.json_response({"error": {"message": str(error), "type": "invalid_request_error"}}, status=400)
        prompt, completion = sum(tokens(one["content"]) for one in body["messages"]), tokens(text)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return web.json_response(
            {
                "id": "chatcmpl-world",
                "object": "chat.completion",
                "created": 0,
                "model": body.get("model"),
                "choices": [choice],
                "usage": usage,
            }
        )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint."""

    url: str

    def counts(self) -> dict[str, int]:
        """Calls and tokens by role, since it was started."""
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/stats", timeout=START_S) as answer:
            found: dict[str, int] = json.load(answer)
        return found


@contextlib.contextmanager
def endpoint(nature: Nature) -> Iterator[Endpoint]:
    """An endpoint in its own process, which ends with the block."""
    command = [sys.executable, "-m", "bench.learning.endpoint", json.dumps(asdict(nature))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the simulated endpoint did not start")
            yield Endpoint(url)
        finally:
            process.terminate()


async def _serve(roles: Roles) -> None:
    runner = web.AppRunner(Server(roles).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def until_closed() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=until_closed, daemon=True).start()
    await ended.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nature", nargs="?", default="{}", help="JSON: " + ", ".join(asdict(Nature())))
    asyncio.run(_serve(Roles(Nature(**json.loads(parser.parse_args().nature)))))


if __name__ == "__main__":
    main()
