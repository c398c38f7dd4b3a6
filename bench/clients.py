"""The clients under test that run in this project's own environment, each in its own process.

``python -m bench.clients raw --url http://127.0.0.1:1234/v1 --calls 5000`` prints a `measure.Measured` as JSON.

The steps from `raw` to `gateway` break down the gateway's time: aiohttp and orjson alone; the gateway's transport
alone; the whole client with a journal that stores nothing; the whole client with its journal. All of them run on uvloop
if it is installed, as Ray's async actors do.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar, cast

from bench.measure import MAX_TOKENS, MODEL, WARM_UP, arguments, measured, prompt

SHARD = 64
"""Rows of a shard; the configuration's default."""
Row = TypeVar("Row")
Ask = Callable[[str], Awaitable[bool]]
"""Sends one prompt; returns whether it was answered."""


def body(text: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": MAX_TOKENS,
    }


@contextlib.asynccontextmanager
async def raw(url: str, in_flight: int) -> AsyncIterator[Ask]:
    """aiohttp and orjson without retries, limits or checks: the practical upper bound for Python."""
    import aiohttp
    import orjson

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"}) as session:

        async def ask(text: str) -> bool:
            async with session.post(f"{url}/chat/completions", data=orjson.dumps(body(text))) as response:
                answer = orjson.loads(await response.read())
            return bool(answer["choices"][0]["message"]["content"])

        yield ask


@contextlib.asynccontextmanager
async def transport(url: str, in_flight: int) -> AsyncIterator[Ask]:
    """The gateway's transport alone."""
    from lion_ray.config import EndpointConfig
    from lion_ray.gateway.address import read_address
    from lion_ray.gateway.http import AiohttpTransport

    config = EndpointConfig(model=MODEL, api_key_env=None, max_concurrency=in_flight)
    chat = AiohttpTransport(config, read_address(url), None)

    async def ask(text: str) -> bool:
        return bool((await chat.chat(body(text))).text)

    yield ask
    await chat.close()


class NoJournal:
    """A journal that stores nothing, to measure the cost of storing."""

    root = ""

    def __contains__(self, key: str) -> bool:
        return False

    async def get(self, key: str) -> None:
        return None

    async def put(self, *_: object, **__: object) -> None:
        return None

    async def refresh_if_older(self, seconds: float) -> bool:
        return False


@contextlib.asynccontextmanager
async def gateway(url: str, in_flight: int, *, stores: bool = True, **settings: Any) -> AsyncIterator[Ask]:
    """The gateway as a proxy actor uses it."""
    from lion_ray.config import EndpointConfig
    from lion_ray.gateway.calls import Call, Completion
    from lion_ray.gateway.client import Client
    from lion_ray.gateway.journal import Journal

    config = EndpointConfig(model=MODEL, api_key_env=None, max_concurrency=in_flight, **settings)
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as folder:
        journal = Journal.open(folder) if stores else cast(Journal, NoJournal())
        client = Client("default", config, journal, base_url=url)

        async def ask(text: str) -> bool:
            call = Call(messages=({"role": "user", "content": text},), max_tokens=MAX_TOKENS, role="teacher")
            return isinstance(await client.complete(call), Completion)

        yield ask
        await client.close()
        if stores:
            await journal.close()


@contextlib.asynccontextmanager
async def openai(url: str, in_flight: int, *, backend: str = "httpx") -> AsyncIterator[Ask]:
    """The openai package; the caller adds only a semaphore."""
    import openai

    http_client = openai.DefaultAioHttpClient() if backend == "aiohttp" else None
    async with openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http_client) as client:

        async def ask(text: str) -> bool:
            answer = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": text}],
                max_tokens=MAX_TOKENS,
                temperature=1.0,
                top_p=1.0,
            )
            return bool(answer.choices[0].message.content)

        yield ask


async def all_under_a_semaphore(ask: Ask, rows: range, in_flight: int) -> int:
    """A task for each row, limited by a semaphore: the usual code."""
    slots = asyncio.Semaphore(in_flight)

    async def one(row: int) -> bool:
        async with slots:
            return await ask(prompt(row))

    return sum(await asyncio.gather(*map(one, rows)))


async def by_workers(ask: Ask, rows: range, in_flight: int) -> int:
    """Workers that take rows from one iterator: the cheapest loop."""
    rest = iter(rows)

    async def work() -> int:
        return sum([await ask(prompt(row)) for row in rest])

    return sum(await asyncio.gather(*(work() for _ in range(in_flight))))


async def in_shards(ask: Ask, rows: range, in_flight: int) -> int:
    """Shards of `SHARD` rows, as the stages of a run send them to a proxy."""

    async def complete(shard: Sequence[int]) -> int:
        return sum(await asyncio.gather(*(ask(prompt(row)) for row in shard)))

    return await shards_at_once(complete, rows, in_flight)


async def shards_at_once(
    complete: Callable[[Sequence[Row]], Awaitable[int]], rows: Sequence[Row], in_flight: int
) -> int:
    """Complete all rows in shards, twice as many rows at once as can be in flight; returns the sum of the results."""
    shards = (rows[i : i + SHARD] for i in range(0, len(rows), SHARD))

    async def work() -> int:
        return sum([await complete(shard) for shard in shards])

    return sum(await asyncio.gather(*(work() for _ in range(max(1, 2 * in_flight // SHARD)))))


OURS = ("raw", "transport", "no-journal", "gateway")
CLIENTS: dict[str, tuple[Callable[..., contextlib.AbstractAsyncContextManager[Ask]], dict[str, Any], Any]] = {
    "raw": (raw, {}, by_workers),
    "transport": (transport, {}, by_workers),
    "no-journal": (gateway, {"stores": False}, in_shards),
    "gateway": (gateway, {}, in_shards),
    "openai-httpx": (openai, {}, all_under_a_semaphore),
    "openai-aiohttp": (openai, {"backend": "aiohttp"}, all_under_a_semaphore),
}


async def bench(name: str, url: str, calls: int, in_flight: int, *, warm_up: bool) -> None:
    make, options, drive = CLIENTS[name]
    if name in OURS:
        # As a proxy actor does; for the raw loop too, so that the steps are comparable.
        from lion_ray.gateway.tuning import collect_seldom

        collect_seldom()
    async with make(url, in_flight, **options) as ask:
        if warm_up:
            await drive(ask, WARM_UP, in_flight)
        with measured(calls) as result:
            result.answered = await drive(ask, range(calls), in_flight)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run on the event loop that Ray gives an async actor."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)


def _profiled(path: str | None) -> contextlib.AbstractContextManager[object]:
    if path is None:
        return contextlib.nullcontext()
    import cProfile

    @contextlib.contextmanager
    def profile() -> Iterator[None]:
        profiler = cProfile.Profile()
        with profiler:
            yield
        profiler.dump_stats(path)

    return profile()


def main() -> None:
    parser = arguments()
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("--cold", action="store_true", help="no warm-up")
    parser.add_argument("--profile", help="write a cProfile to this file; the measured speed is then meaningless")
    given = parser.parse_args()
    with _profiled(given.profile):
        run(bench(given.client, given.url, given.calls, given.in_flight, warm_up=not given.cold))


if __name__ == "__main__":
    main()
