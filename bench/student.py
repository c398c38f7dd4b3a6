"""The student pool compared with raw vLLM and with the published method: see `bench/README.md`.

Each method runs in its own process (`student_way.py`), one at a time. Exit code 0 if every measured goal was met, else
1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

from bench import goals as common
from bench.goals import Goal
from bench.harness import ROOT, BenchError, environment
from bench.student_way import Measured, Round, Work
from bench.texts import REAL, instructions, made
from lion_ray.config import StudentConfig
from lion_ray.core.errors import LionError
from lion_ray.core.process_guard import Guard
from lion_ray.inference import gpu_build, student_type
from lion_ray.models.resolve import resolve_model

MODEL = "bundled:smollm2-135m-instruct"
"""The demo's student."""
LONGEST_TEXT = 200
"""Maximum characters of an instruction, so that every prompt fits."""
TIMEOUT_S = 1800.0
"""Timeout for one method, including its boot."""
NATIVE = "float16 on a GPU; on a CPU bfloat16 with AMX, else float32"
OF_RAW, OF_PUBLISHED = 0.95, 25.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line and fill in the defaults."""
    parser = common.parser(__doc__, "a smaller version with a tiny random model: under a minute")
    parser.add_argument("--model", help=f"a folder, a hub name or bundled:NAME; {MODEL} by default")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help=NATIVE)
    parser.add_argument("--eager", action="store_true", help="do not compile: boots faster, answers slower")
    parser.add_argument("--rounds", type=_positive, help="default 3; quick: 1")
    parser.add_argument("--rows", type=_positive, help="instructions per round: 256; quick: 128")
    parser.add_argument("--published-rows", type=_positive, help="of them for the published method: 12; quick: 4")
    parser.add_argument("--max-tokens", type=_positive, help="the longest answer: 128; quick: 32")
    parser.add_argument("--max-num-seqs", type=_positive, default=64, help="concurrent answers of an engine")
    parser.add_argument("--shard-rows", type=_positive, default=64, help="rows of a shard, for the pool")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    given.tiny = given.quick and given.model is None
    given.eager = given.eager or given.quick
    given.dtype = given.dtype or native_dtype()
    sizes = {"rounds": (3, 1), "rows": (256, 128), "published_rows": (12, 4), "max_tokens": (128, 32)}
    for name, (whole, quick) in sizes.items():
        if getattr(given, name) is None:
            setattr(given, name, quick if given.quick else whole)
    return given


def native_dtype() -> str:
    """The number type of engines with `dtype: auto` on this machine."""
    return student_type("auto")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def chosen(given: argparse.Namespace) -> tuple[bool, list[list[str]]]:
    """Whether the texts are real, and the texts of the warm-up and of each round; no text is repeated."""
    real = REAL.exists()
    wanted = given.rows * given.rounds + given.max_num_seqs
    texts = instructions(REAL) if real else made(2 * wanted, given.seed)
    short = list(dict.fromkeys(text for text in texts if 0 < len(text) <= LONGEST_TEXT))
    picked = random.Random(given.seed).sample(short, wanted)
    starts = range(given.max_num_seqs, wanted, given.rows)
    return real, [picked[: given.max_num_seqs], *(picked[start : start + given.rows] for start in starts)]


def work_of(given: argparse.Namespace, folder: Path, texts: list[list[str]], way: str) -> Work:
    """A method's work: for the published method, fewer rows of the same rounds."""
    warm_up, *rounds = texts
    if way == "published":
        warm_up, rounds = warm_up[:1], [one[: given.published_rows] for one in rounds]
    student = StudentConfig(
        model=str(folder),
        dtype=given.dtype,
        max_tokens=given.max_tokens,
        max_model_len=512 if given.tiny else 1024,
        max_num_seqs=given.max_num_seqs,
        enforce_eager=given.eager,
    )
    return Work(student.model_dump(mode="json"), given.seed, given.shard_rows, warm_up, rounds)


def measure(way: str, work: Work, say: Callable[[str], None]) -> Measured:
    """Run a method to its end in its own process; its children have ended with it.

    Raises:
        BenchError: it failed; with its last output.
    """
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as name:
        task, result, log = (Path(name) / file for file in ("work.json", "result.json", "log"))
        task.write_text(json.dumps(asdict(work)))
        command = [sys.executable, "-m", "bench.student_way", way, str(task), str(result)]
        with log.open("wb") as output, _watched(command, output) as process:
            try:
                process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise BenchError(f"{way} took more than {TIMEOUT_S:.0f} s") from None
        if process.returncode or not result.exists():
            lines = log.read_text(errors="replace").strip().splitlines()
            raise BenchError(f"{way} ended with {process.returncode}: " + "\n".join(lines[-20:]))
        found = json.loads(result.read_text())
    measured = Measured(**found | {"rounds": [Round(**one) for one in found["rounds"]]})
    rates = ", ".join(f"{one.tokens_per_s:.1f}" for one in measured.rounds)
    say(f"{way}: {rates} tokens/s; boot {measured.boot_s:.1f} s, warm-up {measured.warm_up_s:.1f} s")
    return measured


@contextlib.contextmanager
def _watched(command: list[str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    guard = Guard()
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=output)
    guard.watch(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # let it stop in order
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        guard.close()
        process.wait()


def summary(measured: Measured) -> dict[str, Any]:
    """A method's results for the JSON."""
    tokens = sum(one.tokens for one in measured.rounds)
    return {
        "tokens_per_s": round(statistics.median(one.tokens_per_s for one in measured.rounds), 2),
        "rounds_tokens_per_s": [round(one.tokens_per_s, 2) for one in measured.rounds],
        "cpu_ms_per_token": round(sum(one.cpu_s for one in measured.rounds) / max(1, tokens) * 1000, 3),
        "rows": measured.rounds[0].rows,
        "tokens": tokens,
        "tokens_amiss": sum(abs(one.tokens - one.asked) for one in measured.rounds),
        "boot_s": round(measured.boot_s, 2),
        "warm_up_s": round(measured.warm_up_s, 2),
    }


def goals(ways: dict[str, dict[str, Any]], *, tiny: bool) -> list[Goal]:
    """The goals. A tiny model's ratios are shown but not evaluated, because its engine hardly computes anything."""
    speed = {name: way["tokens_per_s"] for name, way in ways.items()}
    of_raw = round(speed["pool"] / speed["raw"], 3) if "raw" in speed else None
    of_published = round(speed["pool"] / speed["published"], 2)
    ratios = [
        common.at_least("speed / raw vLLM's", of_raw, OF_RAW),
        common.at_least("speed / the published method's", of_published, OF_PUBLISHED),
    ]
    if tiny:
        common.undecided(ratios, "the model is too small")
    amiss = sum(way["tokens_amiss"] for way in ways.values())
    return [*ratios, common.at_most("difference from the required number of tokens", amiss, 0)]


def run(given: argparse.Namespace, say: Callable[[str], None]) -> tuple[dict[str, Any], list[Goal]]:
    real, texts = chosen(given)
    say(f"{given.rounds} rounds of {given.rows} {'real' if real else 'synthetic'} instructions")
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as name:
        if given.tiny:
            from tests.tiny import make_tiny_model

            folder = make_tiny_model(Path(name) / "tiny", initializer_range=0.5)
        else:
            folder = resolve_model(given.model or MODEL, base_dir=None, progress=say)
        # Most of a quick run is vLLM's start, so raw vLLM, whose ratio would not be evaluated, is omitted.
        names = ("pool", "published") if given.quick and given.tiny else ("raw", "pool", "published")
        ways = {way: summary(measure(way, work_of(given, folder, texts, way), say)) for way in names}
    decided = goals(ways, tiny=given.tiny)
    found: dict[str, Any] = {
        "ways": ways,
        "times_raw": decided[0].measured,
        "times_published": decided[1].measured,
        "model": "tiny" if given.tiny else given.model or MODEL,
        "texts": "real" if real else "made",
        "gpu": gpu_build(),
    }
    sizes = ("dtype", "eager", "rounds", "rows", "max_tokens", "max_num_seqs", "shard_rows", "seed")
    return found | {size: getattr(given, size) for size in sizes}, decided


def main() -> int:
    given = parse()
    try:
        found, decided = run(given, common.say)
    except (BenchError, LionError) as error:
        print(error, file=sys.stderr)
        if given.json:
            print(json.dumps({"ok": False, "error": str(error).splitlines()[0]}))
        return 1
    return common.conclude(given, found, decided)


if __name__ == "__main__":
    sys.exit(main())
