"""Memory of a sharded fit on CPUs: ``python -m bench.sharded [--shape 250m] [--processes 2 4] [--lora] [--json]``.

A Llama with random weights is fine-tuned for a few steps in several processes over gloo. What a process holds beyond
what it holds after a fit of a tiny model is compared with its share of what a fit must hold: weights, gradients and
AdamW's moments in float32, 16 bytes for each parameter (with adapters: 4 or 2 bytes for each frozen one). Pages of
files are not counted: the system takes them back. What is freed goes back to the system at once
(MALLOC_MMAP_THRESHOLD_), as glibc would otherwise keep most of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 4096},
    "100m": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 10, "vocab_size": 8192},
    "250m": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 14, "vocab_size": 16_000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 32_000},
}
BYTES = 16
"""For each trained parameter: its weight, its gradient and two moments."""
GOAL = 1.2


class Watch(threading.Thread):
    """The most anonymous memory that this process had in each phase, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.phase, self.most = "start", {}  # type: ignore[var-annotated]

    def follow(self, kind: Any) -> None:
        """Begin a phase at each method of a class that holds a model."""
        for name, during, after in (
            ("measured", "loading", "measuring"),
            ("trained", "handing over", "training"),
            ("save", "writing", "measuring the result"),
        ):
            setattr(kind, name, self._phased(getattr(kind, name), during, after))

    def _phased(self, method: Any, during: str, after: str) -> Any:
        def phased(*args: Any) -> Any:
            self.phase = during
            result = method(*args)
            self.phase = after
            return result

        return phased

    def run(self) -> None:
        while True:
            self.most[self.phase] = max(self.most.get(self.phase, 0), anonymous())
            time.sleep(0.005)


def anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def make(shape: str, folder: Path) -> int:
    """A model of random weights with a tokenizer; returns its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import make_tiny_tokenizer

    sizes: Any = SHAPES[shape]
    heads = sizes["hidden_size"] // 64
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def process(job: dict[str, Any], rank: int) -> None:
    """One process of the fit; its last line is what it held."""
    import peft  # noqa: F401
    import torch
    import torch.distributed as dist
    from transformers.models.llama import modeling_llama  # noqa: F401

    from lion_ray.config import LoraConfig
    from lion_ray.imitation.training import held
    from lion_ray.imitation.training.fit import train
    from lion_ray.imitation.training.spec import TrainSpec

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{job['port']}", rank=rank, world_size=job["processes"]
    )
    spec = TrainSpec(
        model_dir=job["model"],
        output_dir=job["out"],
        epochs=1,
        batch_size=job["processes"],
        max_length=64,
        micro_batch_rows=1,
        precision=job["precision"],
        checkpoint_every=job["checkpoint_every"],
        lora=LoraConfig(rank=8) if job["lora"] else None,
        activation_checkpointing=True,
    )
    rows = [{"instruction": f"Say {n}.", "answer": f"It is {n}."} for n in range(2 * job["processes"])]
    # What a fit takes whatever the model: threads, kernels, buffers of the connections.
    train(
        dataclasses.replace(spec, model_dir=job["warm_up"], output_dir=f"{job['out']}-warm-up"),
        rows=rows,
        heldout_rows=rows[:4],
        report=lambda *_: None,
    )
    gc.collect()
    base = anonymous()
    watch = Watch()
    watch.start()
    watch.follow(held.Sharded)
    metrics = train(spec, rows=rows, heldout_rows=rows[:4], report=lambda *_: None)
    phases = {phase: most - base for phase, most in watch.most.items()}
    print(json.dumps({"rank": rank, "phases": phases, "loss": metrics["last_loss"]}), flush=True)
    dist.destroy_process_group()


def measure(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process held."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.sharded", "--job", json.dumps(job), "--rank", str(rank)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(job["processes"])
    ]
    said = [one.communicate()[0] for one in started]
    if any(one.returncode for one in started):
        raise SystemExit("a process of the fit failed")
    return [json.loads(text.splitlines()[-1]) for text in said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="250m")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--lora", action="store_true", help="adapters over frozen weights")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--checkpoints", action="store_true", help="write a checkpoint in each step")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        return process(json.loads(given.job), given.rank)
    found = []
    with tempfile.TemporaryDirectory() as work:
        make("tiny", Path(work, "warm-up"))
        parameters = make(given.shape, Path(work, "model"))
        each = (2 if given.precision == "bf16" else 4) if given.lora else BYTES
        for count in given.processes:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            job = {"processes": count, "port": port, "model": f"{work}/model", "out": f"{work}/{count}"}
            job["warm_up"] = f"{work}/warm-up"
            job |= {"lora": given.lora, "precision": given.precision}
            ranks = measure(job | {"checkpoint_every": "0s" if given.checkpoints else "10h"})
            share = each * parameters / count
            peaks = {phase: max(rank["phases"].get(phase, 0) for rank in ranks) for phase in ranks[0]["phases"]}
            host = sum(max(rank["phases"].values()) for rank in ranks)
            row = {
                "processes": count,
                "parameters": parameters,
                "share_mb": share / 1e6,
                "ratio": max(peaks.values()) / share,
                "host_ratio": host / (share * count),
                "phases": {phase: most / share for phase, most in peaks.items()},
                "first": max(ranks[0]["phases"].values()) / share,
            }
            found.append(row)
            phases = ", ".join(f"{phase} {ratio:.2f}" for phase, ratio in row["phases"].items())
            print(
                f"{count} processes, {parameters / 1e6:.0f}M parameters: a share is {share / 1e6:.0f} MB; the most "
                f"that a process held is {row['ratio']:.2f} of it ({phases}), the host {row['host_ratio']:.2f}",
                flush=True,
            )
    if given.json:
        print(json.dumps({"ok": all(row["ratio"] <= GOAL for row in found), "goal": GOAL, "measured": found}))
    return None


if __name__ == "__main__":
    main()
