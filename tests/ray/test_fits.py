"""A fit of two Ray Train workers, one of which dies: it goes on from the checkpoint that they moved to its place."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from lion_ray.actors.trainer import fit, torch_trainer
from lion_ray.config import ImitationConfig
from lion_ray.core import layout
from lion_ray.core.records import ANSWER, INSTRUCTION, OK, table
from lion_ray.core.step_log import read_steps
from lion_ray.core.store import RunStore
from lion_ray.models.model_ref import ModelRef
from tests.ray.machines import Machines
from tests.tiny import make_tiny_model

DIES_AT = 8


@pytest.mark.long
def test_a_killed_worker_s_fit_goes_on_from_its_checkpoint(cluster: Machines, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "base")
    (tmp_path / "mortal.py").write_text(
        textwrap.dedent(f"""
        import os, signal, time, torch.distributed
        from pathlib import Path
        from lion_ray.imitation.objectives.cross_entropy import CrossEntropy

        class Mortal(CrossEntropy):
            steps, died = 0, Path({str(tmp_path / "died")!r})

            def count(self, samples):
                with (self.died.parent / f"steps-{{torch.distributed.get_rank()}}").open("a") as file:
                    file.write("x")
                self.steps += 1
                if self.steps == {DIES_AT} and torch.distributed.get_rank() == 1 and not self.died.exists():
                    # Ray Train takes up a checkpoint some seconds after it is reported.
                    while not list(self.died.parent.glob("run/fits/*/checkpoint_manager_snapshot.json")):
                        time.sleep(0.1)
                    self.died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().count(samples)
        """)
    )
    store = RunStore(str(tmp_path / "run"))
    ids = [str(number) for number in range(24)]
    asked = [{"id": n, "text": f"Say {n}.", "source": "pool", "iteration": 1} for n in ids]
    given = [{"id": n, "text": f"It is {n}.", "status": OK, "finish_reason": "stop"} for n in ids]
    store.write_table("asked.parquet", table(asked, INSTRUCTION))
    store.write_table("given.parquet", table(given, ANSWER))
    config = ImitationConfig.model_validate(
        {"workers": 2, "num_cpus": 1, "batch_size": 6, "epochs": 3, "max_length": 128, "precision": "fp32"}
        | {"checkpoint_every_steps": 3, "objective": {"import_path": "mortal:Mortal"}}
    )
    job = {
        "run": "r",
        "iteration": 1,
        "store": store,
        "base_dir": tmp_path,
        "start": ModelRef("base", source=str(tmp_path / "base")),
        "target": layout.model(1),
        "rows": [("asked.parquet", "given.parquet")],
        "heldout": [],
        "config": config,
        "prompt": "chat",
        "serve_dtype": "float32",
        "seed": 0,
        "workers": 2,
    }
    fit(torch_trainer(store, job))
    assert (tmp_path / "died").exists()
    metrics = store.read_json(f"{layout.model(1)}/{layout.TRAINING}")["metrics"]
    assert (metrics["steps"], metrics["workers"]) == (12, 2)
    assert [step["step"] for step in read_steps(store, layout.checkpoint(1))] == list(range(1, 13))
    # The checkpoint of step 6 may have been on its way; from the one of step 3 it went on at the worst.
    assert 12 < len((tmp_path / "steps-1").read_text()) <= DIES_AT + 9
    kept = [path for path, is_folder in store.entries(layout.fit(1)) if is_folder]
    assert len(kept) == 1, "the one before it is deleted"
    assert list(Path(store.path(layout.model(1))).parent.glob("*.checkpoint-*")) == []
