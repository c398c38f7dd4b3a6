"""Fits that are killed, fits in two processes, and a disk that is full."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lion_ray.config import LoraConfig
from lion_ray.core.errors import TrainingError
from lion_ray.imitation.training.fit import train
from tests import warm
from tests.training.conftest import ROWS, weights

NAMES = ("one", "two")
LORA = LoraConfig(rank=4, dropout=0.2)


def same_bits(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def header(path):
    """What a safetensors file says of its tensors, without their places."""
    with safe_open(path, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        return {name: (found.get_shape(), found.get_dtype()) for name, found in slices.items()}


def reported(keep):
    """What the first process reported, step by step."""
    return [json.loads(line) for line in (keep / "steps-0.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (1, {"precision": "bf16"}),
        (1, {"lora": LORA}),
        (2, {"sharding": "full"}),
        (2, {"sharding": "none", "lora": LORA}),
    ],
    ids=["1", "1-lora", "2-sharded", "2-replicated-lora"],
)
def test_a_killed_fit_ends_with_the_same_bits(make_spec, run_fit, tmp_path, processes, changes):
    codes, _ = run_fit(make_spec("whole", **changes), processes)
    assert codes == [0] * processes
    spec = make_spec("killed", **changes)
    codes, keep = run_fit(spec, processes, kill_at=10)
    assert -signal.SIGKILL in codes
    assert not (tmp_path / "killed").exists()
    codes, _ = run_fit(spec, processes, restore=keep / "step-10")
    assert codes == [0] * processes
    assert same_bits(tmp_path / "whole", tmp_path / "killed")
    metrics = [json.loads((tmp_path / name / "training.json").read_text())["metrics"] for name in ("whole", "killed")]
    for key in ("tokens", "fill", "first_loss", "last_loss", "heldout_loss_before", "heldout_loss_after"):
        assert metrics[0][key] == metrics[1][key]


@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (2, {"sharding": "full"}),
        (2, {"sharding": "full", "activation_checkpointing": True, "lora": LoraConfig(rank=4)}),
        (2, {"sharding": "none"}),
        # The last step has a single row: one of the processes has nothing to do.
        (2, {"sharding": "full", "batch_size": 23, "epochs": 1, "max_length": 512, "warmup_ratio": 0.0}),
        # Rows of the weights that three processes cannot share evenly.
        (3, {"sharding": "full", "epochs": 1}),
        (4, {"sharding": "full", "replicas": 2, "epochs": 1}),
    ],
    ids=["sharded", "sharded-lora-recomputed", "replicated", "idle", "unevenly", "two-replicas-of-two"],
)
def test_several_processes_learn_what_one_learns(make_spec, run_fit, tmp_path, processes, changes):
    code, alone = run_fit(make_spec("one", **changes))
    codes, together = run_fit(make_spec("two", **changes), processes)
    assert (code, codes) == ([0], [0] * processes)
    # AdamW hides a gradient's scale, which clipping and its epsilon do not.
    steps = [reported(keep) for keep in (alone, together)]
    assert [step["grad_norm"] for step in steps[0]] == pytest.approx([s["grad_norm"] for s in steps[1]], rel=1e-3)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-5, msg=name)
    metrics = [json.loads((tmp_path / name / "training.json").read_text())["metrics"] for name in ("one", "two")]
    for key in ("first_loss", "last_loss", "heldout_loss_before", "heldout_loss_after"):
        assert metrics[0][key] == pytest.approx(metrics[1][key], rel=1e-4)
    assert metrics[1]["workers"] == processes
    # However the model was held, its folder is the same.
    files = [sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*")) for name in NAMES]
    assert files[0] == files[1]
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    for name in [*files[0]]:
        if name.endswith(".safetensors"):
            assert header(tmp_path / "one" / name) == header(tmp_path / "two" / name)
    canaries = [json.loads((tmp_path / name / "canary.json").read_text()) for name in NAMES]
    assert [entry["tokens"] for entry in canaries[0]["prompts"]] == [
        entry["tokens"] for entry in canaries[1]["prompts"]
    ]


def test_a_checkpoint_of_two_processes_is_taken_up_by_one(make_spec, run_fit, tmp_path):
    assert run_fit(make_spec("whole"), 2)[0] == [0, 0]
    spec = make_spec("killed")
    _, keep = run_fit(spec, 2, kill_at=10)
    assert run_fit(spec, 1, restore=keep / "step-10")[0] == [0]
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-5, msg=name)


def test_another_fits_checkpoint_is_refused(make_spec, run_fit):
    _, keep = run_fit(make_spec(), kill_at=5)
    with pytest.raises(TrainingError, match="other data or settings"):
        train(make_spec(seed=1), rows=ROWS, report=lambda step, folder: None, restore=keep / "step-5")


@pytest.mark.parametrize(
    ("processes", "still", "sharding", "where"), [(2, 1, "full", "within"), (3, 0, "none", "after")]
)
def test_a_process_that_stands_still_is_named(make_spec, run_fit, processes, still, sharding, where):
    spec = make_spec(sharding=sharding, collective_timeout_s=2)
    codes, keep = run_fit(spec, processes, stop=(still, 6, where))
    assert codes == [-signal.SIGKILL if rank == still else 1 for rank in range(processes)]
    for rank in set(range(processes)) - {still}:
        said = (keep / f"stderr-{rank}").read_text()
        (line,) = [line for line in said.splitlines() if line.startswith("lion_ray.core.errors.")]
        assert line.startswith(f"lion_ray.core.errors.TrainingError: process {still} (")
        assert line.count("pid ") == 1, "and nobody else"
        assert "did not reach a collective of" in line
        assert "or hangs for 2 s" in line
        assert said.endswith(line + "\n"), "one line"


def run_module(spec, *launcher, **options):
    """``python -m lion_ray.imitation.training`` with `spec`, as a user would run it."""
    path = Path(f"{spec.output_dir}.json")
    spec.save(path)
    if not launcher:
        return warm.run("lion_ray.imitation.training", str(path), imported=warm.TRAINING, **options)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, *launcher, "-m", "lion_ray.imitation.training", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return warm.Outcome(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_leaves_no_folder_and_the_same_command_makes_it(make_spec, tmp_path):
    spec = make_spec(checkpoint_every_steps=50)
    # Any one file may be as large as half of the model: all but the weights can be written.
    limit = (Path(spec.model_dir) / "model.safetensors").stat().st_size // 2
    failed = run_module(spec, largest_file=limit)
    assert failed.code != 0
    assert "step=12" in failed.out
    assert (tmp_path / "out.partial" / "config.json").exists()
    assert not (tmp_path / "out").exists()
    done = run_module(spec)
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out", "out.json"]


def test_a_disk_that_is_full_at_a_checkpoint_is_one_line(make_spec, tmp_path):
    spec = make_spec()
    limit = (Path(spec.model_dir) / "model.safetensors").stat().st_size // 2
    failed = run_module(spec, largest_file=limit)
    assert failed.code == 6, failed.err
    last = failed.err.splitlines()[-1]
    assert last.startswith("lion-ray training: the checkpoint after step 5 could not be written beside ")
    assert "File too large" in last
    assert "Traceback" not in failed.err


@pytest.mark.long
def test_the_module_goes_on_from_its_own_checkpoint(make_spec, tmp_path):
    # A file where the folder should be made: the fit ends, but cannot be written.
    (tmp_path / "out.partial").touch()
    failed = run_module(make_spec(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert failed.code != 0
    assert "step=12" in failed.out
    assert [path.name for path in (tmp_path / "out.progress").iterdir()] == ["step-00000010"]
    (tmp_path / "out.partial").unlink()
    done = run_module(make_spec())
    assert done.code == 0, done.err
    steps = [line.split()[0] for line in done.out.splitlines() if line.startswith("step=")]
    assert steps == ["step=11", "step=12"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out", "out.json"]


def test_a_mistake_is_one_line_and_an_exit_code(make_spec):
    failed = run_module(make_spec(prompt="missing.txt"))
    assert failed.code == 2
    assert failed.err.splitlines()[-1].startswith("lion-ray training: the prompt template")
    assert "Traceback" not in failed.err
