"""A tiny model, rows to learn from, and a way to run a fit in processes of its own."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from lion_ray.imitation.training.spec import TrainSpec
from tests.tiny import make_tiny_model
from tests.training import worker

ROWS = [
    {"instruction": f"Say number {i}.", "answer": "The number is " + " ".join([str(i)] * (3 + i % 9)) + "."}
    for i in range(24)
]
HELDOUT = [{"instruction": f"Say number {i}.", "answer": f"The number is {i}."} for i in range(30, 36)]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make_spec(tiny, tmp_path):
    """A spec for a fit of 12 steps in float32; keyword arguments override it."""

    def make(name="out", **changes):
        fields = {
            "model_dir": str(tiny),
            "output_dir": str(tmp_path / name),
            "rows": write_rows(tmp_path / "rows.jsonl", ROWS),
            "heldout": write_rows(tmp_path / "heldout.jsonl", HELDOUT),
            "epochs": 3,
            "learning_rate": 1e-3,
            "batch_size": 6,
            "max_length": 128,
            "precision": "fp32",
            "micro_batch_rows": 2,
            "checkpoint_every_steps": 5,
            "canary_prompts": ("Say number 3.", "Hello?"),
            "canary_tokens": 6,
        }
        return TrainSpec(**(fields | changes))

    return make


@pytest.fixture
def run_fit(tmp_path):
    """Run a fit in `processes` processes; returns their exit codes and the folder of kept checkpoints.

    Forked from a server that never ran a backward pass: torch forbids forking from a process that did.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.worker", "transformers.models.llama.modeling_llama", "peft"])

    def run(spec, processes=1, **job):
        keep = tmp_path / f"keep-{Path(spec.output_dir).name}"
        keep.mkdir(exist_ok=True)
        (keep / "meeting").unlink(missing_ok=True)
        running = [
            context.Process(target=worker.main, args=(spec, keep, rank, processes), kwargs=job)
            for rank in range(processes)
        ]
        for process in running:
            process.start()
        still = running[job["stop"][0]] if "stop" in job else None
        for process in running:
            if process is not still:
                process.join()
        if still is not None:
            still.kill()
            still.join()
        for rank, process in enumerate(running):
            if process.exitcode:
                print((keep / f"stderr-{rank}").read_text())
        return [process.exitcode for process in running], keep

    return run


def weights(folder):
    """Every tensor of a model folder, by name."""
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")
