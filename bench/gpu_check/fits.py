"""Whole small fits: on the GPU against the CPU, packed against single samples, resumed, and under torchrun."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.gpu_check.numbers import Machine, at_most, distance, failed, number, relative, say
from lion_ray.config import LoraConfig
from lion_ray.imitation.training.data import collate, encode, pack, read_rows
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.model import LabelledLogits, World, load_model
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.imitation.training.speed import choose_attention
from lion_ray.models.prompter import Prompter
from tests.tiny import make_tiny_model

CPU = torch.device("cpu")
ROWS = [
    {"instruction": f"Say number {i}.", "answer": "The number is " + " ".join([str(i)] * (3 + i % 9)) + "."}
    for i in range(48)
]


def against_the_cpu(machine: Machine) -> None:
    """The losses of a fit on this device against the CPU's, step by step; packed rows; a resumed fit."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        spec = _spec(folder, machine)
        say("a fit on the CPU in float32")
        expected, _ = _fit(replace(spec, output_dir=str(folder / "cpu")), CPU)
        # TF32 keeps 10 bits of a float32's mantissa, bfloat16 keeps 7.
        for precision, limit in (("fp32", 5e-3), ("bf16", 3e-2)):
            try:
                there = replace(spec, output_dir=str(folder / precision), precision=precision)  # type: ignore[arg-type]
                found, _ = _fit(there, machine.device)
                off = max(relative(one, other) for one, other in zip(found, expected, strict=True))
                at_most(f"{precision} fit: largest relative error of a step's loss", off, limit, steps=len(found))
            except Exception as error:  # noqa: BLE001 - one number fails, the others are still measured
                failed(f"{precision} fit", error)
        _packing(spec, machine)
        _resume(spec, folder, machine)


def _packing(spec: TrainSpec, machine: Machine) -> None:
    samples = encode(ROWS, Prompter.load(spec.model_dir, "chat"), spec.max_length, "drop")[0]
    for precision, limit in (("fp32", 1e-4), ("bf16", 1e-2)):
        name = f"{precision}: relative difference of packed from single samples"
        try:
            chosen = replace(spec, precision=precision)  # type: ignore[arg-type]
            model = load_model(spec.model_dir, machine.device)
            kernel = choose_attention(model, samples, chosen, machine.device, World())
            logits = LabelledLogits(model.eval())

            def mean(rows: list[Any], half: bool = precision == "bf16", logits: LabelledLogits = logits) -> float:
                with torch.no_grad(), torch.autocast(machine.device.type, torch.bfloat16, enabled=half):
                    return float(sum(logits.losses(collate([row]).to(machine.device)).sum() for row in rows))

            packed = pack(samples, spec.max_length)
            at_most(name, relative(mean(packed), mean([[one] for one in samples])), limit, attention=kernel)
        except Exception as error:  # noqa: BLE001
            failed(name, error)


def _resume(spec: TrainSpec, folder: Path, machine: Machine) -> None:
    name = "a resumed fit: relative difference of its last loss"
    try:
        whole, weights = _fit(replace(spec, output_dir=str(folder / "whole")), machine.device)
        killed = replace(spec, output_dir=str(folder / "killed"))
        kept = folder / "kept"
        with suppress(_StoppedError):
            _fit(killed, machine.device, keep=kept)
        rest, again = _fit(killed, machine.device, restore=kept)
        limit = 0.0 if machine.device.type == "cpu" else 1e-3
        at_most(name, relative(rest[-1], whole[-1]), limit, resumed_at=len(whole) - len(rest))
        at_most("a resumed fit: distance of its weights", distance(again, weights), limit)
    except Exception as error:  # noqa: BLE001
        failed(name, error)


def under_torchrun(machine: Machine) -> None:
    """The training's own command under torchrun, sharded and with adapters, against one process without it."""
    processes = 2 if machine.device.type == "cpu" else machine.gpus
    kinds: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": LoraConfig(rank=4)}}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = _spec(folder, machine, heldout=True)
        for kind, changes in kinds.items():
            name = f"torchrun, {kind}"
            try:
                alone = replace(base, output_dir=str(folder / f"{kind}-alone"), **changes)
                expected = train(alone, rows=ROWS, heldout_rows=ROWS[:8], report=lambda *_: None, device=machine.device)
                spec = replace(base, output_dir=str(folder / kind), **changes)
                spec.save(folder / f"{kind}.json")
                _torchrun(processes, folder / f"{kind}.json", machine)
                found = json.loads((folder / kind / "training.json").read_text())["metrics"]
                number(f"{name}: processes", found["workers"], ok=found["workers"] == processes)
                for key in ("last_loss", "heldout_loss_after"):
                    at_most(f"{name}: relative difference of {key}", relative(found[key], expected[key]), 5e-3)
            except Exception as error:  # noqa: BLE001
                failed(name, error)


def _torchrun(processes: int, spec: Path, machine: Machine) -> None:
    say(f"torchrun with {processes} processes: {spec.stem}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if machine.device.type == "cpu" else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **hidden}
    done = subprocess.run(
        [*command, "-m", "lion_ray.imitation.training", str(spec)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        say(done.stderr[-3000:])
        raise RuntimeError(f"it ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")


class _StoppedError(Exception):
    """A fit is left in the midst of it."""


def _fit(
    spec: TrainSpec, device: torch.device, *, keep: Path | None = None, restore: Path | None = None
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Each step's loss and the weights. `keep`: stop at the first checkpoint and keep it there."""
    from safetensors.torch import load_file

    losses: list[float] = []

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        losses.append(metrics["loss"])
        if keep is not None and folder is not None:
            shutil.copytree(folder, keep)
            raise _StoppedError

    train(spec, rows=read_rows(spec.rows), report=report, restore=restore, device=device)
    if not all(math.isfinite(loss) for loss in losses):
        raise RuntimeError(f"losses are {losses}")
    return losses, load_file(Path(spec.output_dir) / "model.safetensors")


def _spec(folder: Path, machine: Machine, *, heldout: bool = False) -> TrainSpec:
    model = make_tiny_model(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:8]))
    return TrainSpec(
        model_dir=str(model),
        output_dir=str(folder / "out"),
        rows=str(folder / "rows.jsonl"),
        heldout=str(folder / "heldout.jsonl") if heldout else "",
        epochs=1,
        learning_rate=1e-3,
        batch_size=12 if machine.tiny else 6,
        max_length=128,
        precision="fp32",
        micro_batch_rows=2,
        compile=False,  # it takes longer than the fit; `parts.kernels` checks it
        checkpoint_every_steps=2 if machine.tiny else 4,
    )
