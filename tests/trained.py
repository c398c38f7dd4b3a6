"""A checkpoint as imitation leaves it: a tiny model fine-tuned for a few steps, with its canary."""

from __future__ import annotations

from pathlib import Path

from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.spec import TrainSpec


def make_trained(base: Path, output: Path, *, seed: int) -> None:
    """Fine-tune `base` into `output` for a few large steps, so that its answers differ from the base's."""
    rows = [
        {"instruction": f"Describe item {n}.", "answer": f"Item {n + seed} is number {seed}.", "finish_reason": "stop"}
        for n in range(8)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    spec = TrainSpec(
        model_dir=str(base),
        output_dir=str(output),
        seed=seed,
        epochs=3,
        batch_size=4,
        learning_rate=5e-3,
        max_length=96,
        precision="fp32",
        sharding="none",
        canary_prompts=("What is this?", "Name one thing."),
        canary_tokens=8,
    )
    train(spec, rows=rows, heldout_rows=rows[:2], report=lambda metrics, checkpoint: None, restore=None)
