"""Imitation under Ray Train: hands `imitation.training.fit` its rows, Ray Train's report and its last checkpoint.

Invariants:
- A fit is named by the iteration, so a retried one is restored where it was, and a finished one is not run again.
- The weights arrive in the run folder whole: written aside, moved, and counted only once the stage's manifest is there.
- The fine-tuning itself knows no Ray; this file knows no torch beyond the number of its threads.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.train
import ray.train.torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from lion_ray.actors.metrics import TrainingMetrics
from lion_ray.actors.resources import group_waits, scarce
from lion_ray.actors.student import ModelRef
from lion_ray.config import ImitationConfig
from lion_ray.core.errors import LionError, TrainingError, as_raised
from lion_ray.core.records import OK
from lion_ray.core.store import RunStore
from lion_ray.data.pools import train_pool
from lion_ray.inference import gpu_build, student_type, wants_gpu
from lion_ray.models.machine import cores

if TYPE_CHECKING:
    from lion_ray.core.store import Manifest
    from lion_ray.pipeline.shard_stage import Run

CANARY_PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three prime numbers.",
    "Explain in a few words why the sky is blue.",
)
CANARY_TOKENS = 16


async def finetune(run: Run, iteration: int, start: ModelRef) -> Manifest:
    """Fine-tune `start` on the Train Pool's answers; the model is then in ``iteration-k/checkpoint/model``.

    Returns:
        What `imitation.training.fit.train` measured: steps, tokens per second, held-out loss before and after, and so on.

    Raises:
        TrainingError: the workers failed more often than `max_restarts`.
    """
    job = job_of(run, iteration, start)
    config: ImitationConfig = job["config"]
    folder = f"iteration-{iteration}/checkpoint"
    gpu = wants_gpu(config.use_gpu)
    resources = {"CPU": config.num_cpus} | ({"GPU": 1.0} if gpu else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config=job,
        # With the CPU build a GPU is a number that Ray counts, and nothing that NCCL could use.
        torch_config=TorchConfig(
            backend="nccl" if gpu and gpu_build() else "gloo", timeout_s=math.ceil(config.collective_timeout_s)
        ),
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=TrainRunConfig(
            name=f"iteration-{iteration}",
            storage_path=run.store.address("fits"),
            failure_config=FailureConfig(max_failures=config.max_restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    progress_file = f"{folder}/progress.json"
    began = time.time()
    with run.progress.stage(f"iteration {iteration}: fine-tuning", 0, "steps") as shown:

        async def look() -> int:
            waits = group_waits(resources, config.workers)
            shown.waits_for = f"{config.workers} × {scarce(resources)}" if waits else ""
            if (seen := run.store.read_json(progress_file)) is None:
                return 0
            shown.total = seen["steps"]
            shown.note = f"loss {seen['loss']:.3f}"
            return int(seen["step"])

        await run.progress.follow(_aside(partial(_fit, trainer)), shown, look)
        written = run.store.read_json(f"{folder}/model/training.json")
        if written is None:
            raise TrainingError(f"iteration {iteration}: fine-tuning ended without writing a model")
        metrics = written["metrics"]
        shown.total = metrics["steps"]
        shown.update(metrics["steps"], f"held-out loss {_arrow(metrics)}")
    times = {"began": round(began, 2), "seconds": round(time.time() - began, 2)}
    return metrics | {"fit_seconds": metrics["seconds"]} | times


def job_of(run: Run, iteration: int, start: ModelRef) -> dict[str, Any]:
    """What each worker of an iteration's fit is told; what they share with the driver is the run folder."""
    config = run.config.imitation.of_iteration(iteration)
    job: dict[str, Any] = {
        "run": run.config.run_name,
        "iteration": iteration,
        "store": run.store,
        "base_dir": run.base_dir,
        "start": start,
        "target": f"iteration-{iteration}/checkpoint/model",
        "rows": [(shard.instructions, shard.answers) for shard in run.pool(train_pool(iteration))],
        "heldout": [(shard.instructions, shard.answers) for shard in run.pool("heldout")],
        "config": config,
        "prompt": run.config.student.prompt,
        "serve_dtype": run.config.student.dtype,
        "seed": run.config.seed + iteration,
        "workers": config.workers,
    }
    if (previous := run.store.stage(f"iteration-{iteration - 1}/checkpoint").manifest()) is not None:
        job["heldout_before"] = previous["heldout_loss_after"]
    return job


def _aside(work: Callable[[], None]) -> asyncio.Future[None]:
    """Run `work` in a thread that nobody waits for when the run is stopped: a fit cannot be told to end, but it ends
    with Ray."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # whoever stops waiting leaves it alone

    def thread() -> None:
        try:
            work()
        except BaseException as raised:  # noqa: BLE001 - handed to whoever awaits
            done.set_exception(raised)
        else:
            done.set_result(None)

    threading.Thread(target=thread, name="fit", daemon=True).start()
    return asyncio.wrap_future(done)


def _arrow(metrics: dict[str, Any]) -> str:
    before, after = metrics.get("heldout_loss_before"), metrics.get("heldout_loss_after")
    return "not measured" if before is None or after is None else f"{before:.3f} → {after:.3f}"


def _fit(trainer: TorchTrainer) -> None:
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {0: error}
        first = as_raised(next(iter(failures.values())))
        if isinstance(first, LionError):
            raise type(first)(str(first)) from None
        raise TrainingError(f"fine-tuning failed: {_last_line(first)}") from None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:400]


def _worker(job: dict[str, Any]) -> None:
    """One Ray Train worker: fetch, train, and on rank 0 move the result into the run folder."""
    import torch

    from lion_ray.imitation.training.fit import train
    from lion_ray.imitation.training.spec import TrainSpec

    store: RunStore = job["store"]
    context = ray.train.get_context()
    leads = context.get_world_rank() == 0
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, cores() // job["workers"]))
    # Beside its final place where that is a local folder, so that adopting it is one rename.
    output = Path(store.path(job["target"])) if store.is_local else Path(tempfile.mkdtemp()) / "model"
    spec = TrainSpec.of(
        job["config"],
        model_dir=str(job["start"].fetch(store, job["base_dir"])),
        output_dir=str(output),
        prompt=job["prompt"],
        base_dir=str(job["base_dir"]),
        seed=job["seed"],
        serve_dtype=student_type(job["serve_dtype"]),
        canary_prompts=CANARY_PROMPTS,
        canary_tokens=CANARY_TOKENS,
    )

    shown = TrainingMetrics(job["run"], job["iteration"])

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        if leads and "step" in metrics:
            shown.show(metrics)
            store.write_json(f"{Path(job['target']).parent}/progress.json", metrics)
        if checkpoint is None:
            return
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(str(checkpoint)))

    last = ray.train.get_checkpoint()
    restore = Path(tempfile.mkdtemp(prefix="lion-ray-restore-")) if last else None
    try:
        if last is not None:
            last.to_directory(str(restore))
        train(
            spec,
            rows=read_rows(store, job["rows"]),
            heldout_rows=read_rows(store, job["heldout"]),
            report=report,
            restore=restore,
            device=ray.train.torch.get_device() if torch.cuda.is_available() else None,
            heldout_before=job.get("heldout_before"),
        )
    finally:
        if restore is not None:
            shutil.rmtree(restore, ignore_errors=True)
    if leads:
        store.adopt_folder(output, job["target"])


def read_rows(store: RunStore, parts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Instructions joined with their answers; what was quarantined is never trained on (contract 4)."""
    rows: list[dict[str, Any]] = []
    for instructions, answers in parts:
        asked: pa.Table = store.read_table(instructions)
        given: pa.Table = store.read_table(answers)
        for question, answer in zip(asked.to_pylist(), given.to_pylist(), strict=True):
            if question["id"] != answer["id"]:
                raise TrainingError(f"{answers} does not answer {instructions}")
            if answer["status"] == OK:
                rows.append(
                    {
                        "instruction": question["text"],
                        "answer": answer["text"],
                        "finish_reason": answer["finish_reason"],
                    }
                )
    return rows
