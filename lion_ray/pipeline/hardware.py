"""The memory and the GPU time that a run takes, on paper: arithmetic on the number of the student's parameters.

Invariants:
- Nothing is measured here and no GPU is needed, so that a run can be planned on a laptop.
- Time is for the GPU and at the utilisations named below, and is said to be: `make gpu-check` measures a GPU's own.

What a CPU computes is forecast by `local_times`, from its measured speed.
"""

from __future__ import annotations

from dataclasses import dataclass

from lion_ray.config import RunConfig
from lion_ray.core.room import GIB
from lion_ray.inference import student_type, wants_gpu
from lion_ray.models.machine import resolve_precision
from lion_ray.pipeline.disk import FLOAT32, MOMENTS
from lion_ray.pipeline.estimate import usual_answer

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
GPU, PEAK = "H100", 989e12
"""The GPU that time is planned for, and its FLOP/s in bfloat16 (`imitation.training.flops.PEAKS`)."""
TRAINING, SAMPLING = 0.3, 0.05
"""Assumed shares of the peak: of training's model FLOPs (MFU), and of an engine's that answers hundreds of requests at
once, which reads weights and caches more than it multiplies."""
GATHERED = 0.15
"""The share of the weights that a sharded fit's worker holds besides its own: five of 32 layers. `bench/sharded.py`
measured 4.6 to 5.5 layers: two and their gradients, and the embedding."""


@dataclass(frozen=True, slots=True)
class Memory:
    """GiB."""

    training: float
    """Of each training worker: weights, gradients, optimizer and gathered layers, without activations."""
    engine: float
    """The weights on each of an engine's GPUs; the key-value cache takes the rest of its share."""
    host: float
    """Main memory for the copies of a checkpoint while it is written, if all workers are on one machine."""

    def lines(self, config: RunConfig) -> list[str]:
        """How each figure was computed."""
        imitation = config.imitation
        share = _shares(config)
        state = (
            "each parameter takes 16 bytes (weight, gradient and two moments in float32)"
            if imitation.lora is None
            else f"each frozen parameter takes {_bytes_each(config):g} bytes, adapters little"
        )
        divided = f", divided by {share} workers, and {GATHERED:.0%} of the weights are gathered" if share > 1 else ""
        return [
            f"memory of a training worker: {state}{divided}; activations come on top, see imitation.micro_batch_rows "
            "and .activation_checkpointing",
            f"main memory where workers train: {self.host:.1f} GiB for copies of a checkpoint (weights and moments, 12 "
            "bytes for each trained parameter), divided by the machines; where that is more than half of what is "
            "free, steps wait for the disk instead. Weights are read and written shard by shard",
        ]


def memory(config: RunConfig, parameters: float) -> Memory:
    """What a student of so many parameters takes."""
    imitation = config.imitation
    state = parameters * _bytes_each(config) / _shares(config)
    gathered = (GATHERED if _shares(config) > 1 else 0.0) * parameters * (2 if _half(config) else FLOAT32)
    engine = parameters * BYTES[student_type(config.student.dtype)] / config.student.tensor_parallel_size
    copies = 0.0
    if imitation.lora is None:
        copies = (1 + MOMENTS) * FLOAT32 * parameters * imitation.workers / _shares(config)
    return Memory(*(round(size / GIB, 1) for size in (state + gathered, engine, copies)))


def _shares(config: RunConfig) -> int:
    """Among how many workers the student is divided."""
    imitation = config.imitation
    return imitation.workers // imitation.replicas if imitation.sharding == "full" else 1


def _half(config: RunConfig) -> bool:
    """Whether training calculates in bfloat16."""
    imitation = config.imitation
    return resolve_precision(imitation.precision, gpu=wants_gpu(imitation.use_gpu)) == "bf16"


def _bytes_each(config: RunConfig) -> float:
    """Bytes of a parameter and what training keeps for it."""
    imitation = config.imitation
    if imitation.lora is None:
        return 16.0
    # Frozen weights alone. Shards are measured in float32 first; a whole model, layer by layer if it must be.
    return 0.6 if imitation.lora.base == "nf4" else 2.0 if _half(config) and _shares(config) == 1 else 4.0


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """The GPU-seconds of a student of so many parameters; None where a stage uses no GPU."""

    config: RunConfig
    parameters: float | None

    def fit(self, tokens: float) -> float | None:
        """To train on `tokens` tokens: 2 FLOPs a parameter forward, 2 for the inputs' gradients, and 2 for a trained
        weight's own (PaLM, arXiv 2204.02311, appendix B). Recomputation counts as lost utilisation."""
        imitation = self.config.imitation
        if self.parameters is None or not wants_gpu(imitation.use_gpu):
            return None
        return tokens * self.parameters * (6 if imitation.lora is None else 4) / (TRAINING * PEAK)

    def student(self, rows: int) -> float | None:
        """For engines to answer `rows` rows at the usual length: 2 FLOPs a parameter and token."""
        if self.parameters is None or not wants_gpu(self.config.student.use_gpu):
            return None
        return rows * usual_answer(self.config, "student") * self.parameters * 2 / (SAMPLING * PEAK)


def gpu_line(hours: float) -> str:
    """The run's GPU time for people, with what it assumes."""
    return (
        f"about {hours:.1f} GPU-hours of an {GPU}, starts and waiting not included: 6 FLOPs a parameter and trained "
        f"token (4 with adapters) at {TRAINING:.0%} of its {PEAK / 1e12:.0f} TFLOP/s, 2 a generated token at "
        f"{SAMPLING:.0%}, usual lengths of answers. Assumed, not measured: `make gpu-check` measures your GPU"
    )
