"""Imitation under Ray Train: gives `imitation.training.fit` its rows, Ray Train's report and the last checkpoint.

Invariants:
- A fit is named by its iteration, so a retried fit resumes and a finished one is not repeated.
- The weights reach the run folder atomically: written aside, then moved; they count only with the stage's manifest.
- The fine-tuning itself does not know Ray; this file uses torch only to set its number of threads.
"""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import ray.train.torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from lion_ray.actors.base import short_of_memory
from lion_ray.actors.metrics import TrainingMetrics
from lion_ray.config import ImitationConfig
from lion_ray.core import layout
from lion_ray.core.copies import copies_folder
from lion_ray.core.errors import ConfigError, InfrastructureError, LionError, TrainingError, as_raised
from lion_ray.core.leftovers import scratch_folder
from lion_ray.core.records import OK, derive_seed
from lion_ray.core.step_log import StepLog
from lion_ray.core.store import RunStore
from lion_ray.imitation.objectives import load_objective
from lion_ray.imitation.pairs import pairs
from lion_ray.imitation.rewarded import rewarded
from lion_ray.inference import gpu_build, student_type, wants_gpu
from lion_ray.models.machine import cores

CANARY_PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three prime numbers.",
    "Explain in a few words why the sky is blue.",
)
CANARY_TOKENS = 16


def torch_trainer(store: RunStore, job: dict[str, Any]) -> TorchTrainer:
    """The Ray Train job of one fit; `job` is passed to each worker."""
    config: ImitationConfig = job["config"]
    gpu = wants_gpu(config.use_gpu)
    resources = {"CPU": config.num_cpus} | ({"GPU": job.get("gpus") or 1.0} if gpu else {})
    return TorchTrainer(
        _worker,
        train_loop_config=job,
        # With the CPU build, a GPU is only a number that Ray counts; NCCL cannot use it.
        torch_config=TorchConfig(
            backend="nccl" if gpu and gpu_build() else "gloo", timeout_s=math.ceil(config.collective_timeout_s)
        ),
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=TrainRunConfig(
            name=job["fit"],
            storage_path=store.address(layout.FITS),
            failure_config=FailureConfig(max_failures=config.max_restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Run `work` in a daemon thread, so that a stopped run does not wait for it: a fit cannot be cancelled, but it ends
    with Ray."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # cancelling the awaiter does not cancel the work

    def thread() -> None:
        try:
            work()
        except BaseException as raised:  # noqa: BLE001 - passed to the awaiter
            done.set_exception(raised)
        else:
            done.set_result(None)

    threading.Thread(target=thread, name="fit", daemon=True).start()
    return asyncio.wrap_future(done)


def fit(trainer: TorchTrainer) -> None:
    """Run the fit to its end. Raises TrainingError, or a worker's own LionError."""
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {0: error}
        first = as_raised(next(iter(failures.values())))
        if isinstance(first, LionError):
            raise type(first)(str(first)) from None
        short = short_of_memory(
            first, "lower imitation.micro_batch_rows or max_length, set activation_checkpointing, or give it more"
        )
        raise TrainingError(f"fine-tuning failed: {short or _last_line(first)}") from None


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
    node = ray.get_runtime_context().get_node_id()
    on_gpu = torch.cuda.is_available() and wants_gpu(job["config"].use_gpu)
    if not on_gpu:
        torch.set_num_threads(max(1, cores() // job["workers"]))
    # In a local run folder, write beside the final place, so that adopting it is one rename.
    scratch = None if store.is_local else scratch_folder("lion-ray-fit-")
    output = Path(store.path(job["target"])) if scratch is None else scratch / "model"
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
    steps = StepLog(store, job["stage"])

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        metrics = {name: value for name, value in metrics.items() if name != "checkpoint"}
        if leads and "step" in metrics:
            shown.show(metrics)
            store.write_json(layout.progress(job["stage"]), metrics | {"node": node})
            # Flush before a checkpoint: a fit restored from it does not repeat the earlier steps.
            steps.add(metrics, at_once=checkpoint is not None or metrics["step"] == metrics["steps"])
        if checkpoint is None:
            return
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(str(checkpoint)),
            checkpoint_upload_fn=_moved if store.is_local else None,
        )

    last = ray.train.get_checkpoint()
    # Where it has to be copied, the processes of a machine share the copy.
    with last.as_directory() if last else nullcontext() as restore:
        rows = rows_of(job)
        if "steps" in job:
            spec = replace(spec, batch_size=math.ceil(len(rows) / job["steps"]))
        train(
            spec,
            rows=rows,
            heldout_rows=read_rows(store, job["heldout"]),
            report=report,
            restore=Path(restore) if restore else None,
            # Without `use_gpu` a GPU may still be visible, and Ray would name it: it is not reserved.
            device=ray.train.torch.get_device() if on_gpu else torch.device("cpu"),
            heldout_before=job.get("heldout_before"),
        )
    if leads:
        store.adopt_folder(output, job["target"])
    if scratch is not None:
        if leads:
            # For the engines and the next fit on this machine. It only saves a download: the folder is stored.
            with suppress(InfrastructureError, OSError):
                store.local_folder(job["target"], copies_folder(), made=output)
        shutil.rmtree(scratch, ignore_errors=True)


def rows_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What a job trains on: the rewarded answers of an on-policy round, or the teacher's answers to a pool."""
    store: RunStore = job["store"]
    if "rewarded" in job:
        prompts, samples, rewards = job["rewarded"]
        joined = (pa.concat_tables(map(store.read_table, parts)) for parts in (samples, rewards))
        return rewarded(store.read_table(prompts), *joined)
    objective = load_objective(job["config"].objective, job["base_dir"])
    rows = read_rows(store, job["rows"], job.get("kept", ()), objective.columns)
    if wanted := round(job["config"].replay * len(rows)):
        earlier = read_rows(store, job["earlier"], job["earlier_kept"], objective.columns)
        rows += drawn(earlier, wanted, job["seed"])
    if objective.min_gap is not None:
        rows += read_pairs(store, job.get("judged", ()), objective.min_gap)
    return rows


def _moved(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Move this process's part of a checkpoint to its place: on one file system nothing is copied."""
    storage = ray.train.get_context().get_storage()
    target = Path(storage.experiment_fs_path) / name
    target.mkdir(parents=True, exist_ok=True)
    for path in Path(checkpoint.path).iterdir():
        shutil.move(path, target / path.name)
    return Checkpoint(path=str(target), filesystem=storage.storage_filesystem)


def read_rows(
    store: RunStore, parts: list[tuple[str, str]], kept: Sequence[str] = (), columns: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Instructions joined with their answers, without quarantined or filtered rows.

    `kept`: for each part the filters' KEPT rows, if there are filters. `columns`: columns of INSTRUCTION or ANSWER that
    the objective needs.

    Raises:
        ConfigError: a column is in neither table.
        TrainingError: parts do not belong together.
    """
    rows: list[dict[str, Any]] = []
    for place, (instructions, answers) in enumerate(parts):
        asked: pa.Table = store.read_table(instructions)
        given: pa.Table = store.read_table(answers)
        whole = {**dict.fromkeys(given.column_names, given), **dict.fromkeys(asked.column_names, asked)}
        if unknown := [name for name in columns if name not in whole]:
            raise ConfigError(f"imitation.objective: it needs the column {unknown[0]!r}; there are {', '.join(whole)}")
        others = [whole[name][name].to_pylist() for name in columns]
        statuses = (store.read_table(kept[place]) if kept else given)["status"].to_pylist()
        for row, (question, answer) in enumerate(zip(asked.to_pylist(), given.to_pylist(), strict=True)):
            if question["id"] != answer["id"]:
                raise TrainingError(f"{answers} does not answer {instructions}")
            if statuses[row] == OK:
                rows.append(
                    {
                        "instruction": question["text"],
                        "answer": answer["text"],
                        "finish_reason": answer["finish_reason"],
                        "messages": question.get("messages") or (),
                        **{name: values[row] for name, values in zip(columns, others, strict=True)},
                    }
                )
    return rows


def drawn(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` of the rows, or all of them if there are fewer, in an order that depends on `seed` alone."""
    return random.Random(derive_seed(seed, "replay")).sample(rows, min(count, len(rows)))


def read_pairs(store: RunStore, parts: Sequence[tuple[str, str, str, str]], min_gap: float) -> list[dict[str, Any]]:
    """Pairs for a fit; of each part the instructions, both answers and the verdicts (`imitation.pairs`)."""
    return [row for part in parts for row in pairs(*(store.read_table(name) for name in part), min_gap=min_gap)]
