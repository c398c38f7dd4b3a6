"""The novelty index compared with brute force and with the published method: see `bench/README.md`.

Exit code 0 if every measured goal was met, else 1.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

from bench import goals as common
from bench.goals import Goal
from bench.harness import ROOT, BenchError, run_client
from bench.peers import Peer
from bench.texts import OTHERS, REAL, candidates, edited, instructions, made, spliced
from lion_ray.similarity.novelty import NoveltyIndex
from lion_ray.similarity.rouge import tokens

THRESHOLD = 0.7
POOL = 52_002
ROUGE = Peer("rouge-score", "0.1.2", "bench.peer_rouge", (("rouge_score==0.1.2",),))

# In a separate process, because memory used before would hide the index's memory.
MEMORY = """
import gc, json, sys
from pathlib import Path
from lion_ray.similarity.novelty import NoveltyIndex

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmRSS"))

NoveltyIndex(["warm up"]).is_novel("warm up")
texts = json.loads(Path(sys.argv[1]).read_text())
gc.collect()
before = resident()
index = NoveltyIndex(texts)
gc.collect()
print(resident() - before)
"""


def brute_force(known: list[str], candidates: list[str]) -> list[bool]:
    """Every decision by all scores with rapidfuzz and a separate encoding; accepted texts become known."""
    numbers: dict[str, int] = {}

    def encoded(text: str) -> str:
        return "".join(chr(numbers.setdefault(token, len(numbers) + 1)) for token in tokens(text))

    texts, queries = [encoded(text) for text in known], [encoded(text) for text in candidates]
    lengths = np.array([len(text) for text in texts], np.float64)
    joined = np.array([len(text) for text in queries], np.float64)
    novel: list[bool] = []
    for start in range(0, len(queries), 64):
        block = queries[start : start + 64]
        sizes = joined[start : start + 64, None]
        known_now = _f(process.cdist(block, texts, scorer=LCSseq.similarity, dtype=np.int32), sizes, lengths)
        joined_now = _f(process.cdist(block, queries[: start + 64], scorer=LCSseq.similarity, dtype=np.int32), sizes,
                        joined[: start + 64])  # fmt: skip
        for row in range(len(block)):
            earlier = np.array([*novel, *[False] * (joined_now.shape[1] - len(novel))])
            highest = max(known_now[row].max(), joined_now[row][earlier].max(initial=0.0))
            novel.append(bool(highest <= THRESHOLD))
    return novel


def _f(lcs: Any, candidate: Any, known: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = lcs / known, lcs / candidate
        return np.where(lcs == 0, 0.0, 2 * precision * recall / (precision + recall))


def filtered(known: list[str], candidates: list[str]) -> tuple[list[bool], float, float]:
    """The index's decisions, where accepted texts become known; CPU seconds to build it, and for all candidates."""
    gc.collect()
    began = time.process_time()
    index = NoveltyIndex(known, THRESHOLD)
    built = time.process_time()
    novel = []
    for text in candidates:
        novel.append(index.is_novel(text))
        if novel[-1]:
            index.add(text)
    return novel, built - began, time.process_time() - built


def published(known: list[str], candidates: list[str]) -> dict[str, Any]:
    """The published method in its own environment; `{"reason": …}` if it cannot be built or fails."""
    if (reason := ROUGE.build()) is not None:
        return {"reason": reason}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"known": known, "candidates": candidates}, file)
        file.flush()
        try:
            return run_client(ROUGE.python, ROUGE.module, file.name)
        except BenchError as error:
            return {"reason": str(error)}


def memory_mb(known: list[str]) -> float:
    """Memory that the index adds to a process, in MB."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(known, file)
        file.flush()
        command = [sys.executable, "-c", MEMORY, file.name]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)


def degenerate(seed: int) -> dict[str, dict[str, float]]:
    """CPU ms for one query in unusual pools."""
    rng = np.random.default_rng(seed)

    def words(count: int, of: int) -> str:
        return " ".join(f"w{number}" for number in rng.integers(0, of, count))

    base = words(30, 1000).split()
    near = [" ".join([*base[:at], f"x{number}", *base[at + 1 :]]) for number in range(20_000) for at in [number % 30]]
    far = " ".join([*base[:14], *words(16, 1000).split()])
    long = [words(10_000, 3000) for _ in range(50)]
    cases = {
        "no token": (near[:1000], "?!"),
        "one token": (["word", *near[:1000]], "word"),
        "10,000 tokens against 50 of 10,000": (long, words(10_000, 3000)),
        "a near duplicate among 20,000 near duplicates": (near, " ".join([*base[:29], "y"])),
        "half equal among 20,000 near duplicates": (near, far),
        "one word repeated, 20,000 of them": (["a " * (number % 50) for number in range(20_000)], "a " * 7 + "b " * 30),
    }
    found = {}
    for name, (known, query) in cases.items():
        index = NoveltyIndex(known, THRESHOLD)
        index.is_novel(query)
        began, rounds = time.process_time(), 0
        while time.process_time() - began < 0.1:
            index.is_novel(query)
            rounds += 1
        found[name] = {"known": len(known), "ms": round((time.process_time() - began) / rounds * 1000, 4)}
    return found


def run(given: argparse.Namespace, say: Callable[[str], None]) -> tuple[dict[str, Any], list[Goal]]:
    real = given.pool.exists()
    known = instructions(given.pool) if real else made(POOL)
    others = [text for path in OTHERS if path.exists() for text in instructions(path)] if real else []
    queries = candidates(known, others, 1500 if given.quick else 6000)
    say(f"{len(known):,} {'real' if real else 'synthetic'} texts, {len(queries):,} candidates")
    rounds = [filtered(known, queries) for _ in range(1 if given.quick else 3)]
    novel, build, spent = sorted(rounds, key=lambda one: one[2])[len(rounds) // 2]
    ms = spent / len(queries) * 1000
    say(f"index: {ms:.4f} ms per candidate, {build:.2f} s to build, {sum(novel):,} novel")
    began = time.process_time()
    expected = brute_force(known, queries)
    brute = (time.process_time() - began) / len(queries) * 1000
    differ = sum(one != other for one, other in zip(novel, expected, strict=True))
    say(f"brute force: {brute:.3f} ms per candidate, {differ} decisions differ")

    few = queries[: 2 if given.quick else 8]
    theirs = published(known, few)
    ratio = None
    if "reason" in theirs:
        say(f"published method: {theirs['reason']}")
    else:
        # By CPU and by wall time; the smaller counts.
        ratio = min(theirs["cpu_s"], theirs["seconds"]) * 1000 / ms
        alone = NoveltyIndex(known, THRESHOLD)
        differ += sum(
            alone.is_novel(text) != (high <= THRESHOLD) for text, high in zip(few, theirs["highest"], strict=True)
        )
        say(f"published method: {theirs['cpu_s'] * 1000:,.0f} ms per candidate, {ratio:,.0f} times as much")

    size = memory_mb(known)
    say(f"memory: {size:.1f} MB")
    grown: list[dict[str, float]] = []
    more = itertools.chain(known, _alternating(known))
    texts: list[str] = []
    for count in [13_000, 26_000, 52_000] if given.quick else [13_000, 26_000, 52_000, 104_000, 208_000, 1_000_000]:
        texts += itertools.islice(more, count - len(texts))
        # The same candidates, and none is added, so that only the pool differs.
        began = time.process_time()
        index = NoveltyIndex(texts, THRESHOLD)
        built = time.process_time()
        for text in queries[:1500]:
            index.is_novel(text)
        cost = (time.process_time() - built) / len(queries[:1500]) * 1000
        grown.append({"known": count, "ms": round(cost, 4), "build_s": round(built - began, 2)})
        say(f"{count:,} texts: {cost:.4f} ms per candidate, {built - began:.2f} s to build")
        del index
    fitted = [one for one in grown if one["known"] <= 208_000]
    slope = common.exponent([int(one["known"]) for one in fitted], [one["ms"] for one in fitted])
    found: dict[str, Any] = {
        "texts": "real" if real else "made",
        "known": len(known),
        "candidates": len(queries),
        "novel": sum(novel),
        "ms_per_candidate": round(ms, 4),
        "build_s": round(build, 3),
        "brute_force_ms": round(brute, 4),
        "published": theirs,
        "times_published": ratio and round(ratio),
        "decisions_different": differ,
        "memory_mb": round(size, 1),
        "growth": grown,
        "exponent": round(slope, 3),
        "degenerate": degenerate(0),
    }
    for name, one in found["degenerate"].items():
        say(f"{name}: {one['ms']:.4f} ms")
    goals = [
        common.at_most("decisions that differ from brute force", differ, 0),
        common.at_most("CPU ms per candidate", found["ms_per_candidate"], 0.2),
        common.at_least(
            "times faster than the published method", found["times_published"], 10_000, theirs.get("reason", "")
        ),
        common.at_most("growth exponent", found["exponent"], 1.0),
        common.at_most("index in MB", found["memory_mb"], 30.0),
    ]
    return found, goals


def _alternating(texts: list[str]) -> Any:
    for pair in zip(spliced(texts, 2), edited(texts, 2), strict=True):
        yield from pair


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--pool", type=Path, default=REAL, help="instructions; synthetic ones if the file is missing")
    given = parser.parse_args()
    found, goals = run(given, common.say)
    return common.conclude(given, found, goals)


if __name__ == "__main__":
    sys.exit(main())
