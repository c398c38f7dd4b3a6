"""The project's trainer compared with other trainers: see `bench/README.md`.

Exit code 0 if every measured goal was met, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also as a script

from bench import goals as common
from bench.goals import Goal
from bench.harness import BenchError, run_client
from bench.peers import Peer
from bench.texts import REAL, made
from lion_ray.core.errors import ModelError
from lion_ray.data.sources import rows_of

if TYPE_CHECKING:
    from bench.training_way import Job

TRL = Peer("trl", "1.16.0", "bench.peer_trl", (("torch==2.13.0", "transformers==5.19.0", "trl==1.16.0"),))
"""With the torch and transformers of this project's CPU environment."""

MODEL = "bundled:smollm2-135m-instruct"
RANDOM: dict[str, dict[str, int]] = {
    "random:10m": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 10,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "random:1b": {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
"""Llamas with random weights."""

PADDED, PADDED_BF16, OURS, PACKED = "padded-fp32", "padded-bf16", "ours", "trl-packed"
TIMES_PADDED = 2.3
TOLERANCE = 0.01
"""In nats; chosen, not derived. Every trainer shuffles rows differently, so losses vary: the rounds' losses, each with
another seed, show how much."""


def parser() -> argparse.ArgumentParser:
    found = common.parser(__doc__, "one round of a tiny random model, without TRL")
    found.add_argument("--profile", action="store_true", help="an additional run with timers: a step's time by part")
    found.add_argument("--model", help=f"a folder, bundled:NAME, {' or '.join(RANDOM)}; by default {MODEL}")
    found.add_argument("--rows", type=int, help="rows to train on")
    found.add_argument("--heldout", type=int, default=32, help="rows to measure the loss on")
    found.add_argument("--rounds", type=int, help="how often each trainer runs")
    found.add_argument("--batch-size", type=int, default=16, help="rows in an optimizer step")
    found.add_argument("--max-length", type=int, default=512, help="tokens in a packed row")
    found.add_argument("--padded-rows", type=int, default=4, help="padded rows in a micro-batch")
    found.add_argument("--learning-rate", type=float, default=2e-5)
    return found


def arguments(given: list[str] | None, *, gpu: bool) -> argparse.Namespace:
    """Parse the command line and fill in the defaults; ends the process if the model needs a GPU."""
    options = parser()
    found = options.parse_args(given)
    if found.model == "random:1b" and not gpu:
        options.error("random:1b needs a GPU")
    found.model = found.model or ("random:10m" if found.quick else "random:1b" if gpu else MODEL)
    # A model of 10M parameters on a CPU shows only that every trainer works.
    found.decides = not (found.quick and found.model == "random:10m" and not gpu)
    found.rows = found.rows or ((48 if found.decides else 24) if not gpu else 512 if found.quick else 2048)
    found.rounds = found.rounds or (1 if found.quick else 3)
    return found


def texts(count: int, path: Path = REAL, seed: int = 0) -> list[dict[str, str]]:
    """Rows of {"instruction", "answer"} in random order: real ones if the file exists, else synthetic ones."""
    if not path.exists():
        words = made(count * 3, seed)
        pairs = [(words[at], " ".join(words[at + 1 : at + 3])) for at in range(0, len(words), 3)]
    else:
        rows = [row.value for row in rows_of(path.name, path.parent)]
        pairs = [("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]) for row in rows]
        pairs = [(instruction, answer) for instruction, answer in pairs if answer.strip()]
    chosen = random.Random(seed).sample(pairs, min(count, len(pairs)))
    return [{"instruction": instruction, "answer": answer} for instruction, answer in chosen]


def random_model(name: str, folder: Path, rows: list[dict[str, str]]) -> Path:
    """A Llama with random weights, and a byte-level tokenizer trained on `rows`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=RANDOM[name]["vocab_size"],
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in rows for text in row.values()), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    sizes: dict[str, Any] = RANDOM[name]
    config = LlamaConfig(**sizes, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def prepare(given: argparse.Namespace, work: Path, say: Callable[[str], None]) -> tuple[Job, Job]:
    """Prepare the model and the rows for all trainers; returns the jobs to train and to evaluate."""
    from bench.training_way import Job
    from lion_ray.imitation.training.data import as_row, encode
    from lion_ray.models.prompter import Prompter
    from lion_ray.models.resolve import resolve_model

    if given.model in RANDOM:
        folder = random_model(given.model, work / "model", texts(4000))
    else:
        try:
            folder = resolve_model(given.model, base_dir=None, progress=say)
        except ModelError as error:
            if given.model != MODEL:
                raise
            say(f"{error}; using a random model")
            given.model = "random:10m"
            folder = random_model(given.model, work / "model", texts(4000))
    from transformers import AutoTokenizer

    prompt = "chat" if AutoTokenizer.from_pretrained(folder).chat_template else "instruction"
    prompter = Prompter.load(folder, prompt)
    kept = []
    for row in texts(2 * (given.rows + given.heldout)):
        samples, _ = encode([as_row(row)], prompter, given.max_length, "drop")
        kept += [(row, sample) for sample in samples]
    if len(kept) < given.rows + given.heldout:
        raise SystemExit(f"there are only {len(kept)} rows of at most {given.max_length} tokens")

    def written(name: str, values: Iterable[Any]) -> str:
        path = work / name
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return str(path)

    train, held = kept[: given.rows], kept[given.rows : given.rows + given.heldout]
    job = Job(
        way=OURS,
        model=str(folder),
        prompt=prompt,
        rows=written("rows.jsonl", (row for row, _ in train)),
        samples=written("samples.jsonl", (sample._asdict() for _, sample in train)),
        learning_rate=given.learning_rate,
        batch_size=given.batch_size,
        max_length=given.max_length,
        padded_rows=given.padded_rows,
    )
    heldout = written("heldout.jsonl", (sample._asdict() for _, sample in held))
    return job, replace(job, way="evaluate", samples=heldout)


def do(job: Job, work: Path) -> dict[str, Any]:
    """Run a job in its own process."""
    job.save(work / "job.json")
    if job.way == PACKED:
        return run_client(TRL.python, TRL.module, str(work / "job.json"), timeout_s=3600)
    return run_client(sys.executable, "bench.training_way", str(work / "job.json"), timeout_s=3600)


def summed_up(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of one trainer's rounds; `{"reason": …}` if it did not run."""
    for one in rounds:
        if "reason" in one:
            return one
    found: dict[str, Any] = {
        "tokens_per_s": round(statistics.median(one["tokens_per_s"] for one in rounds), 1),
        "labelled_per_s": round(statistics.median(one["labelled"] / one["seconds"] for one in rounds), 1),
        "rounds_tokens_per_s": [round(one["tokens_per_s"], 1) for one in rounds],
        "peak_mb": round(statistics.median(one["peak_mb"] for one in rounds)),
        "heldout_loss": round(statistics.mean(one["heldout_loss"] for one in rounds), 4),
        "rounds_heldout_loss": [round(one["heldout_loss"], 4) for one in rounds],
        "fill": round(rounds[0]["fill"], 3),
        "steps": rounds[0]["steps"],
        "threads": rounds[0]["threads"],
    }
    if "device_peak_mb" in rounds[0]:
        found["device_peak_mb"] = round(max(one["device_peak_mb"] for one in rounds))
    return found


def times(ways: dict[str, dict[str, Any]], other: str) -> float | None:
    """Our trainer's tokens per second divided by another's, the median over the rounds; None without the other."""
    theirs = ways.get(other, {}).get("rounds_tokens_per_s")
    if theirs is None:
        return None
    pairs = zip(ways[OURS]["rounds_tokens_per_s"], theirs, strict=True)
    return round(statistics.median(one / two for one, two in pairs), 3)


def utilisation(parameters: int, tokens_per_s: float, peak_flops: float) -> float:
    """The share of the machine's bfloat16 FLOP/s used, at 6 FLOP per parameter and token."""
    return round(6 * parameters * tokens_per_s / peak_flops, 4)


def judged(ways: dict[str, dict[str, Any]], without_trl: str = "") -> list[Goal]:
    worse = round(ways[OURS]["heldout_loss"] - ways[PADDED]["heldout_loss"], 4)
    reason = ways.get(PACKED, {"reason": without_trl}).get("reason", "")
    return [
        common.at_least("speed / the padded Trainer's in fp32", times(ways, PADDED), TIMES_PADDED),
        common.at_least("speed / TRL's, packed, in bf16", times(ways, PACKED), 1.0, reason),
        common.at_most("held-out loss above the padded Trainer's", worse, TOLERANCE),
    ]


def run(given: argparse.Namespace, work: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], list[Goal]]:
    order, without_trl = [PADDED, *([PADDED_BF16] if given.decides else []), OURS], "omitted"
    if not given.quick:
        without_trl = TRL.build() or ""
        order += [] if without_trl else [PACKED]
    job, heldout = prepare(given, work, say)
    peak = do(replace(job, way="peak"), work)
    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in order}
    untrained, parameters = 0.0, 0
    for number in range(given.rounds):
        for way in order:
            # Another seed in each round; every trainer shuffles differently anyway.
            this = replace(job, way=way, seed=number, out=str(work / way))
            try:
                one = do(this, work)
                say(f"{way}: {one['tokens_per_s']:.1f} tokens/s, {one['peak_mb']:.0f} MB")
            except BenchError as error:
                if way == OURS:
                    raise
                one = {"reason": str(error)}
                say(f"{way}: {error}")
            rounds[way].append(one)
        ran = [way for way in order if "reason" not in rounds[way][-1]]
        folders = {way: str(work / way) for way in ran} | ({"untrained": job.model} if number == 0 else {})
        seen = do(replace(heldout, folders=tuple(folders.values())), work)
        parameters = seen["parameters"]
        for way in ran:
            rounds[way][-1]["heldout_loss"] = seen["losses"][folders[way]]
            shutil.rmtree(folders[way])
            say(f"{way}: held-out loss {rounds[way][-1]['heldout_loss']:.4f}")
        if number == 0:
            untrained = seen["losses"][folders["untrained"]]
        order = [*order[1:], order[0]]
    ways = {way: summed_up(rounds[way]) for way in rounds}
    for one in ways.values():
        if "reason" not in one:
            one["utilisation"] = utilisation(parameters, one["tokens_per_s"], peak["flops"])
    if not given.quick and without_trl:
        ways[PACKED] = {"reason": without_trl}
    found: dict[str, Any] = {
        "texts": "real" if REAL.exists() else "made",
        "model": given.model,
        "parameters": parameters,
        "rows": given.rows,
        "heldout": given.heldout,
        "rounds": given.rounds,
        "tokens": rounds[OURS][0]["tokens"],
        "labelled": rounds[OURS][0]["labelled"],
        "batch_size": given.batch_size,
        "max_length": given.max_length,
        "padded_rows": given.padded_rows,
        "learning_rate": given.learning_rate,
        "device": peak["device"],
        "peak_flops": round(peak["flops"]),
        "peak_measured": peak["measured"],
        "heldout_loss_untrained": round(untrained, 4),
        "ways": ways,
        "times_padded_bf16": times(ways, PADDED_BF16),
        "peers": {TRL.name: TRL.version},
    }
    if given.profile:
        parts = do(replace(job, way="profiled", out=str(work / "profiled")), work)["parts_s"]
        whole = sum(parts.values())
        found["shares"] = {part: round(seconds / whole, 3) for part, seconds in parts.items()}
    goals = judged(ways, without_trl)
    if not given.decides:
        common.undecided(goals, "the model is too small")
    difference = abs(rounds[PADDED][0]["tokens"] - found["tokens"])
    return found, [*goals, common.at_most("difference in trained tokens from the padded Trainer", difference, 0)]


def table(found: dict[str, Any]) -> str:
    lines = [f"{'':14}{'tokens/s':>10}{'labelled/s':>12}{'MB':>8}{'fill':>7}{'loss':>9}{'of peak':>9}"]
    for way, one in found["ways"].items():
        if "reason" in one:
            lines.append(f"{way:14}{one['reason']}")
        else:
            lines.append(
                f"{way:14}{one['tokens_per_s']:10.1f}{one['labelled_per_s']:12.1f}{one['peak_mb']:8}{one['fill']:7.2f}"
                f"{one['heldout_loss']:9.4f}{one['utilisation']:9.1%}"
            )
    if "shares" in found:
        lines.append("our time by part: " + ", ".join(f"{part} {of:.1%}" for part, of in found["shares"].items()))
    return "\n".join(lines)


def main() -> int:
    import torch

    given = arguments(None, gpu=torch.cuda.is_available())
    with tempfile.TemporaryDirectory(prefix="lion-ray-bench-") as folder:
        found, goals = run(given, Path(folder), common.say)
    print(table(found))
    return common.conclude(given, found, goals)


if __name__ == "__main__":
    sys.exit(main())
