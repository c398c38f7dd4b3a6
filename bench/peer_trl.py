"""TRL's SFTTrainer with packing, in an environment with TRL: ``python -m bench.peer_trl JOB.json``.

It gets the rows as token ids and labels, the same as the other trainers. Unlike its default, activations are not
recomputed.
"""

from __future__ import annotations

import json
import sys

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from bench.training_way import Clock, Job, arguments, load, measured


def main() -> None:
    job = Job.load(sys.argv[1])
    samples, clock = job.labelled(), Clock()
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    # Its batches are counted in packed rows: as many as hold this project's rows per step on average.
    tokens = sum(len(sample["input_ids"]) for sample in samples)
    per_step = max(1, round(job.batch_size * tokens / len(samples) / job.max_length))
    at_once = min(job.packed_rows, per_step)
    model = load(job.model)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments(job, at_once, per_step),
            bf16=True,
            packing=True,
            max_length=job.max_length,
        ),
        train_dataset=Dataset.from_list(samples),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    packed = trainer.train_dataset
    trainer.train()
    model.save_pretrained(job.out)
    kept = sum(len(row["input_ids"]) for row in packed)
    if kept != tokens:
        raise SystemExit(f"other rows were trained on: {kept} tokens, expected {tokens}")
    more = {"packed_rows": len(packed), "rows_at_once": at_once, "steps": trainer.state.global_step}
    print(json.dumps(measured(clock.seconds, samples, fill=1.0, **more)), flush=True)


if __name__ == "__main__":
    main()
