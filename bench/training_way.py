"""One trainer, timed, in its own process: ``python -m bench.training_way JOB.json``.

Invariants:
- Every trainer takes each row once, at a constant learning rate, with AdamW, no weight decay and gradients clipped at
  1, and writes float32 weights to a Hugging Face folder.
- The time from the first step to the end of the last one counts, without loading, tokenizing and saving.
- The last line of the output is one JSON object.

This module needs torch and transformers; it imports this project only for `ours`, because the peers' environments lack
it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from bench.measure import peak_mb

IGNORED = -100
"""The label of a token that is not trained on."""


@dataclass(frozen=True)
class Job:
    """A trainer's input."""

    way: str
    model: str = ""
    """A Hugging Face folder."""
    prompt: str = "chat"
    rows: str = ""
    """A .jsonl file of {"instruction", "answer"}."""
    samples: str = ""
    """The same rows as a .jsonl file of {"ids", "prompt"}: token ids, and the number of the prompt's tokens."""
    out: str = ""
    """The output folder."""
    seed: int = 0
    learning_rate: float = 2e-5
    batch_size: int = 16
    """Rows in an optimizer step."""
    max_length: int = 512
    packed_rows: int = 4
    """Packed rows in a micro-batch."""
    padded_rows: int = 4
    """Padded rows in a micro-batch."""
    folders: tuple[str, ...] = ()
    """Models to evaluate."""

    @classmethod
    def load(cls, path: str) -> Job:
        fields = json.loads(Path(path).read_text())
        return cls(**(fields | {"folders": tuple(fields["folders"])}))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def labelled(self) -> list[dict[str, list[int]]]:
        """The samples as {"input_ids", "labels"}."""
        lines = [json.loads(line) for line in Path(self.samples).read_text().splitlines()]
        return [
            {
                "input_ids": line["ids"],
                "labels": [IGNORED] * line["prompt"] + line["ids"][line["prompt"] :],
            }
            for line in lines
        ]


class Clock(TrainerCallback):
    """Measures the seconds from a Trainer's first step to the end of its last."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.monotonic()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.monotonic() - self.began


def arguments(job: Job, rows_at_once: int, rows_per_step: int) -> dict[str, Any]:
    """A Trainer's arguments, without the number type."""
    return {
        "output_dir": f"{job.out}.trainer",
        "num_train_epochs": 1,
        "per_device_train_batch_size": rows_at_once,
        "gradient_accumulation_steps": -(-rows_per_step // rows_at_once),
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": job.seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
    }


def load(folder: str) -> Any:
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def measured(seconds: float, samples: list[dict[str, list[int]]], **more: Any) -> dict[str, Any]:
    """A trainer's result; `samples` were trained on in `seconds`."""
    tokens = sum(len(sample["input_ids"]) for sample in samples)
    labelled = sum(label != IGNORED for sample in samples for label in sample["labels"])
    found = {"tokens": tokens, "labelled": labelled, "seconds": seconds, "tokens_per_s": tokens / seconds}
    found |= {"peak_mb": peak_mb(), "threads": torch.get_num_threads(), **more}
    if torch.cuda.is_available():
        found["device_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def ours(job: Job) -> dict[str, Any]:
    """The project's trainer, with the spec of a run."""
    from lion_ray.imitation.training.data import read_rows
    from lion_ray.imitation.training.fit import train
    from lion_ray.imitation.training.spec import TrainSpec

    spec = TrainSpec(
        model_dir=job.model,
        output_dir=job.out,
        prompt=job.prompt,
        seed=job.seed,
        epochs=1,
        learning_rate=job.learning_rate,
        schedule="constant",
        warmup_ratio=0.0,
        batch_size=job.batch_size,
        max_length=job.max_length,
        micro_batch_rows=job.packed_rows,
        checkpoint_every="1000h",
    )
    metrics = train(spec, rows=read_rows(job.rows), report=lambda *_: None)
    samples = job.labelled()
    seconds = metrics["tokens"] / metrics["tokens_per_second"]
    found = measured(seconds, samples, fill=metrics["fill"], steps=metrics["steps"])
    if (found["tokens"], len(samples)) != (metrics["tokens"], metrics["samples"]):
        raise SystemExit(f"other rows were trained on: {metrics['tokens']} tokens, expected {found['tokens']}")
    return found


def profiled(job: Job) -> dict[str, Any]:
    """The project's trainer with a timer around each part of a step: seconds by part."""
    from lion_ray.imitation.training import fit

    spent: dict[str, float] = defaultdict(float)

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timer(*args: Any, **named: Any) -> Any:
            began = time.monotonic()
            result = call(*args, **named)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[part] += time.monotonic() - began
            return result

        return timer

    def each(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def batches(*args: Any, **named: Any) -> Any:
            # A generator's time is spent in its steps.
            following = timed(part, lambda: next(iterator, None))
            iterator = call(*args, **named)
            while (batch := following()) is not None:
                yield batch

        return batches

    patched: list[tuple[Any, str, Callable[..., Any]]] = [
        (fit.LabelledLogits, "__call__", timed("forward", fit.LabelledLogits.__call__)),
        (torch.Tensor, "backward", timed("backward", torch.Tensor.backward)),
        (torch.optim.AdamW, "step", timed("optimizer", torch.optim.AdamW.step)),
        (torch.nn.utils, "clip_grad_norm_", timed("clipping", torch.nn.utils.clip_grad_norm_)),
        (fit, "share_out", timed("data", fit.share_out)),
        (fit, "micro_batches", each("data", fit.micro_batches)),
    ]
    loop = fit._run

    def clean(*args: Any, **named: Any) -> float:
        spent.clear()  # what was done before the first step
        began = time.perf_counter()
        seconds = loop(*args, **named)
        spent["other"] = time.perf_counter() - began - sum(spent.values())
        return seconds

    for owner, name, wrapper in patched:
        setattr(owner, name, wrapper)
    fit._run = clean
    return ours(job) | {"parts_s": {part: round(seconds, 3) for part, seconds in spent.items()}}


def padded(job: Job, *, bf16: bool) -> dict[str, Any]:
    """transformers' Trainer, with rows in random order and each batch padded to its longest row."""
    samples, counts, clock = job.labelled(), {"positions": 0}, Clock()

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        counts["positions"] += width * len(rows)

        def filled(values: list[list[int]], padding: int) -> torch.Tensor:
            return torch.tensor([one + [padding] * (width - len(one)) for one in values])

        return {
            "input_ids": filled([row["input_ids"] for row in rows], 0),
            "attention_mask": filled([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": filled([row["labels"] for row in rows], IGNORED),
        }

    model = load(job.model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            **arguments(job, job.padded_rows, job.batch_size),
            bf16=bf16,
            remove_unused_columns=False,
        ),
        train_dataset=samples,
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    model.save_pretrained(job.out)
    tokens = sum(len(sample["input_ids"]) for sample in samples)
    fill = tokens / counts["positions"]
    return measured(clock.seconds, samples, fill=fill, steps=trainer.state.global_step)


@torch.no_grad()
def evaluated(job: Job) -> dict[str, Any]:
    """Every model's mean loss of the answers' tokens in nats: float32, one row at a time, with none of our code."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    samples = job.labelled()
    losses = {}
    for folder in job.folders:
        model = load(folder).eval().to(device)
        total, tokens = 0.0, 0
        for sample in samples:
            labels = torch.tensor(sample["labels"][1:], device=device)
            logits = model(input_ids=torch.tensor([sample["input_ids"]], device=device)).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
            tokens += int((labels != IGNORED).sum())
        losses[folder] = total / tokens
    return {"losses": losses, "parameters": sum(parameter.numel() for parameter in model.parameters())}


KNOWN_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s of devices, from their specifications."""


def peak(_job: Job) -> dict[str, Any]:
    """The machine's bfloat16 FLOP/s: from the device's specification, or the best of some matrix products."""
    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else "cpu"
    known = next((flops for part, flops in KNOWN_PEAKS.items() if part in name), None)
    if known is not None:
        return {"flops": known, "device": name, "measured": False}
    size = 8192 if cuda else 2048
    left = torch.randn(size, size, device="cuda" if cuda else "cpu", dtype=torch.bfloat16)
    best = 0.0
    for _ in range(8):
        began = time.monotonic()
        torch.mm(left, left)
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.monotonic() - began))
    return {"flops": best, "device": name, "measured": True}


WAYS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "ours": ours,
    "profiled": profiled,
    "padded-fp32": lambda job: padded(job, bf16=False),
    "padded-bf16": lambda job: padded(job, bf16=True),
    "evaluate": evaluated,
    "peak": peak,
}

if __name__ == "__main__":
    job = Job.load(sys.argv[1])
    print(json.dumps(WAYS[job.way](job)), flush=True)
