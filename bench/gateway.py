"""The gateway against a stub server, compared with other clients in one run: see `bench/README.md`.

Each client runs in its own process against its own server; rounds are interleaved, so that a slow minute of the machine
affects all of them. Exit code 0 if every measured goal was met, else 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

from bench import goals as common
from bench.goals import Goal
from bench.harness import BenchError, measure, stub_server
from bench.kills import Killed, kill_often
from bench.peers import PEERS

IN_FLIGHT = 256
LATENCY_MS = 50
PER_MINUTE, BURST = 6000, 100
MEMORY_MB = 100.0
LADDER = ("raw", "transport", "no-journal", "gateway")
OPENAI = ("openai-httpx", "openai-aiohttp")
WITHOUT_LATENCY = (*LADDER, *OPENAI, "ray-actor", "oumi", "oumi-64", "curator")
WITH_LATENCY = (*LADDER, *OPENAI, "ray-actor", "oumi", "curator")


@dataclass(frozen=True)
class Size:
    """The amounts to measure."""

    rounds: int
    calls: int
    slow_calls: int
    """For slower clients."""
    limit_s: float
    memory_calls: tuple[int, int]
    killed_calls: int
    kills: int
    with_latency: tuple[str, ...]
    """The clients also measured with latency."""


FULL = Size(3, 10_000, 3_000, 60.0, (1_000, 100_000), 5_000, 20, WITH_LATENCY)
QUICK = Size(1, 4_000, 250, 10.0, (1_000, 4_000), 600, 2, ("gateway",))
PAIRS = 3
"""How often a round measures the gateway without and with latency, because the noise exceeds the difference."""

ENOUGH_PAIRS = 5


@dataclass
class Findings:
    """The results of one run of the bench."""

    without_latency: dict[str, Any] = field(default_factory=dict)
    with_latency: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    kills: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return common.all_ok(self.goals)


# --- clients side by side


@dataclass(frozen=True)
class ClientRun:
    """How to run a client."""

    module: str
    arguments: tuple[str, ...]
    python: str | Path
    calls: int
    in_flight: int = IN_FLIGHT


def client_run(name: str, size: Size) -> ClientRun:
    for peer in PEERS:
        if name.startswith(peer.name):
            # Without latency oumi is fastest with fewer workers.
            workers = 64 if name.endswith("-64") else IN_FLIGHT
            return ClientRun(peer.module, (), peer.python, size.slow_calls, workers)
    if name == "ray-actor":
        return ClientRun("bench.ray_actor", (), sys.executable, size.calls)
    return ClientRun("bench.clients", (name,), sys.executable, size.slow_calls if name in OPENAI else size.calls)


def once(name: str, latency_ms: float, size: Size) -> dict[str, float]:
    client = client_run(name, size)
    with stub_server("--latency-ms", str(latency_ms)) as stub:
        result = measure(
            stub,
            client.module,
            *client.arguments,
            calls=client.calls,
            in_flight=client.in_flight,
            python=client.python,
        )
        server = stub.stats()
    if result.answered != client.calls:
        raise BenchError(f"{result.answered} of {client.calls} rows answered")
    return {
        "rows_per_s": client.calls / result.seconds,
        "cpu_ms_per_call": result.cpu_s / client.calls * 1000,
        "peak_mb": result.peak_mb,
        "server_cpu_ms_per_call": server["cpu_s"] / server["bought"] * 1000,
    }


def turns(names: list[str], size: Size) -> Iterator[tuple[str, int]]:
    """A round: clients with their latencies in ms, in order. Compared measurements follow each other directly."""
    for name in names:
        both = [0, LATENCY_MS] if name in size.with_latency else [0]
        for pair in range(PAIRS if name == "gateway" else 1):
            for latency in both if pair % 2 == 0 else both[::-1]:
                yield name, latency


def side_by_side(found: Findings, names: list[str], size: Size, say: Callable[[str], None]) -> None:
    """Medians over the rounds by client; `{"reason": …}` for a client that failed."""
    for number in range(size.rounds):
        for name, latency in turns(names, size):
            into = found.with_latency if latency else found.without_latency
            if "reason" in into.setdefault(name, {"rounds": []}):
                continue
            try:
                into[name]["rounds"].append(once(name, latency, size))
            except BenchError as error:
                into[name] = {"reason": str(error)}
                say(f"  {name}: {error}")
            else:
                rows = into[name]["rounds"][-1]["rows_per_s"]
                say(f"  round {number + 1}, {latency} ms, {name}: {rows:,.0f} rows/s")
    for into in (found.without_latency, found.with_latency):
        for name, one in into.items():
            into[name] = one if "reason" in one else _medians(one["rounds"])


def _medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {key: round(statistics.median(one[key] for one in rounds), 4) for key in rounds[0]}
    found["rounds_rows_per_s"] = [round(one["rows_per_s"], 1) for one in rounds]
    return found


# --- the gateway alone


def limited(size: Size, silent: bool) -> dict[str, Any]:
    """The gateway at a server's rate limit: the share of it that was used, and the number of 429s."""
    calls = round(PER_MINUTE * size.limit_s / 60) + BURST
    options = ["--latency-ms", str(LATENCY_MS), "--per-minute", str(PER_MINUTE), "--burst", str(BURST)]
    with stub_server(*options, *(["--silent-limit"] if silent else [])) as stub:
        result = measure(stub, "bench.clients", "gateway", "--cold", calls=calls, in_flight=IN_FLIGHT)
        server = stub.stats()
    return {
        "calls": calls,
        "answered": result.answered,
        "seconds": round(server["seconds"], 2),
        # The burst is available at once; the rest at the limit's rate, from the first request to the last.
        "used": round((server["bought"] - BURST) / (PER_MINUTE / 60 * server["seconds"]), 4),
        "limited": server["limited"],
        "limited_share": round(server["limited"] / (server["limited"] + server["bought"]), 4),
        "bought_twice": server["repeated"],
    }


def both_limits(size: Size) -> dict[str, Any]:
    # Concurrently, because each takes only a few per cent of a core.
    with ThreadPoolExecutor(2) as pool:
        announced, silent = pool.map(lambda silent: limited(size, silent), (False, True))
    return {"told": announced, "silent": silent}


def memory(size: Size) -> dict[str, Any]:
    few, many = size.memory_calls
    peaks = []
    for calls in (few, many):
        with stub_server() as stub:
            result = measure(stub, "bench.clients", "gateway", calls=calls, in_flight=IN_FLIGHT)
        if result.answered != calls:
            raise BenchError(f"{result.answered} of {calls} rows answered")
        peaks.append(result.peak_mb)
    return {
        "few_calls": few,
        "many_calls": many,
        "few_peak_mb": round(peaks[0], 1),
        "many_peak_mb": round(peaks[1], 1),
        "grown_mb": round(peaks[1] - peaks[0], 1),
    }


# --- goals


def allowed(fast: float, calls: int) -> float:
    """The maximum rows/s of `calls` calls with latency, given the rate `fast` without: each call takes at least the
    latency, and at most `IN_FLIGHT` are in flight."""
    latency_s = LATENCY_MS / 1000
    return min(IN_FLIGHT / latency_s, calls / (calls / fast + latency_s))


def goals(found: Findings, killed: Killed | None, skipped: dict[str, str], calls: int) -> Iterator[Goal]:
    """`skipped`: the peers not requested, with reasons. If a peer could not run, its goal is missed."""
    mine = found.without_latency["gateway"].get("rows_per_s")
    oumi = [one for name, one in found.without_latency.items() if name.startswith("oumi")]
    name = "0 ms: rows/s at least oumi's"
    if "oumi" in skipped:
        yield Goal(name, None, mine, None, skipped["oumi"])
    else:
        best = [one["rows_per_s"] for one in oumi if "rows_per_s" in one]
        held = mine is not None and bool(best) and mine >= max(best)
        yield Goal(name, held, mine, max(best, default=None), "" if best else oumi[0]["reason"])
    now, late = (one["gateway"].get("rounds_rows_per_s", []) for one in (found.without_latency, found.with_latency))
    shares = [slow / allowed(fast, calls) for fast, slow in zip(now, late, strict=False)]
    share = round(statistics.median(shares), 3) if shares else None
    name = f"{LATENCY_MS} ms, {IN_FLIGHT} in flight: share of the rate that the latency allows"
    if share is not None and len(shares) < ENOUGH_PAIRS:
        yield Goal(name, None, share, 0.95, "too few pairs, given the machine's noise")
    else:
        yield Goal(name, share is not None and share >= 0.95, share, 0.95, "the median of the pairs' ratios")
    for kind, share in (("told", 0.97), ("silent", 0.90)):
        one = found.limits[kind]
        answered = one["answered"] == one["calls"]
        yield Goal(f"limit {kind}: share used", one["used"] >= share, one["used"], share)
        yield Goal(f"limit {kind}: rows answered", answered, one["answered"], one["calls"])
    share = found.limits["told"]["limited_share"]
    yield Goal("limit told: share of 429s", share < 0.01, share, 0.01)
    grown = found.memory["grown_mb"]
    yield Goal("memory: MB from few calls to many", grown <= MEMORY_MB, grown, MEMORY_MB)
    if killed is not None:
        most = max(killed.in_flight_at_kill, default=0)
        yield Goal("kills: results lost", not killed.lost and killed.answered == killed.calls, killed.lost, 0)
        yield Goal("kills: journaled calls repeated", not killed.journaled_repeated, killed.journaled_repeated, 0)
        yield Goal(
            "kills: sent twice",
            killed.bought_twice <= sum(killed.in_flight_at_kill),
            killed.bought_twice,
            sum(killed.in_flight_at_kill),
            "at most the calls in flight at the kills",
        )
        yield Goal("kills: maximum in flight at one", most <= killed.in_flight, most, killed.in_flight)


# --- the printed report


def table(found: dict[str, Any], title: str) -> Iterator[str]:
    yield f"{title:<30}{'rows/s':>10}{'CPU ms/call':>13}{'peak MB':>9}"
    for name, one in found.items():
        if "reason" in one:
            yield f"  {name:<28}{'-':>10}  {one['reason']}"
        else:
            yield f"  {name:<28}{one['rows_per_s']:>10,.0f}{one['cpu_ms_per_call']:>13.3f}{one['peak_mb']:>9.0f}"


def ladder(found: dict[str, Any]) -> dict[str, float] | None:
    """The CPU ms that each part of the gateway adds to a call."""
    cpu = [found.get(name, {}).get("cpu_ms_per_call") for name in LADDER]
    if any(one is None for one in cpu):
        return None
    steps = {"aiohttp_and_orjson": cpu[0]}
    for part, (below, above) in zip(("transport", "client", "journal"), pairwise(cpu), strict=True):
        steps[part] = above - below
    return {part: round(ms, 4) for part, ms in steps.items()}


def report(found: Findings) -> Iterator[str]:
    yield from table(found.without_latency, f"0 ms, {IN_FLIGHT} in flight")
    yield from table(found.with_latency, f"{LATENCY_MS} ms, {IN_FLIGHT} in flight")
    steps = ladder(found.without_latency)
    if steps is not None:
        yield "CPU time of a call by part, ms: " + ", ".join(f"{part} {ms:.3f}" for part, ms in steps.items())
    for kind, one in found.limits.items():
        yield (
            f"limit {kind}: {one['used']:.1%} of {PER_MINUTE} per minute used over {one['seconds']:.0f} s, "
            f"{one['limited']} 429s ({one['limited_share']:.2%}), {one['answered']} of {one['calls']} answered"
        )
    one = found.memory
    yield f"memory: {one['few_peak_mb']} MB at {one['few_calls']} calls, {one['many_peak_mb']} at {one['many_calls']}"
    one = found.kills
    yield (
        f"kills: {one['kills']} over {one['calls']} calls: {one['lost']} lost, {one['journaled_repeated']} journaled "
        f"repeated, {one['bought_twice']} sent twice ({sum(one['in_flight_at_kill'])} were in flight)"
    )
    yield from common.lines(found.goals)


def as_json(found: Findings, given: argparse.Namespace, size: Size) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "quick": given.quick,
        "goals": common.as_json(found.goals),
        "without_latency": found.without_latency,
        "with_latency": found.with_latency,
        "cpu_ms_by_part": ladder(found.without_latency),
        "limits": found.limits,
        "memory": found.memory,
        "kills": found.kills,
        "rounds": size.rounds,
        "calls": size.calls,
        "slow_calls": size.slow_calls,
        "in_flight": IN_FLIGHT,
        "latency_ms": LATENCY_MS,
        "peers": {peer.name: peer.version for peer in PEERS},
        "machine": common.machine(),
    }


def run(given: argparse.Namespace, size: Size, say: Callable[[str], None]) -> Findings:
    found = Findings()
    skipped: dict[str, str] = {}
    broken: dict[str, str] = {}
    for peer in PEERS:
        if given.no_peers or given.quick:
            skipped[peer.name] = "peers were not requested"
            continue
        say(f"{peer.name}: its environment is {peer.folder}")
        if (reason := peer.build()) is not None:
            broken[peer.name] = reason
            say(f"{peer.name}: {reason}")
    if given.quick:
        skipped |= dict.fromkeys(("ray", "transport", "no"), "not in a quick run")
    peers = {name: name.partition("-")[0] for name in WITHOUT_LATENCY}
    side_by_side(found, [name for name, peer in peers.items() if peer not in {*skipped, *broken}], size, say)
    for names, into in ((WITHOUT_LATENCY, found.without_latency), (size.with_latency, found.with_latency)):
        into |= {name: {"reason": broken[peers[name]]} for name in names if peers[name] in broken}
    say("limits")
    found.limits = both_limits(size)
    say("memory")
    found.memory = memory(size)
    say("kills")
    killed = kill_often(size.killed_calls, size.kills, in_flight=64, seed=given.seed)
    found.kills = asdict(killed)
    found.goals = list(goals(found, killed, skipped, size.calls))
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = common.parser(__doc__, "a smaller version without peers: under a minute")
    parser.add_argument("--no-peers", action="store_true", help="without oumi and curator")
    parser.add_argument("--seed", type=int, default=1, help="seed of the times of the kills")
    return parser.parse_args(arguments)


def main() -> int:
    given = parse()
    size = QUICK if given.quick else FULL
    try:
        found = run(given, size, common.say)
    except BenchError as error:
        common.say(f"bench: {error}")
        if given.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        return 1
    print("\n".join(report(found)))
    if given.json:
        print(json.dumps(as_json(found, given, size)))
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
