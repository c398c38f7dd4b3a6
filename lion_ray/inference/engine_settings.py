"""vLLM's settings for a student's engine: environment variables and arguments.

This module does not import vLLM, which reads its environment when it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lion_ray.config import StudentConfig
from lion_ray.inference import gpu_build, leaves_compilation, memory_share, student_type
from lion_ray.inference.memory import AT_ONCE, sequences_at_once
from lion_ray.inference.ports import first_port
from lion_ray.models.machine import cores

GIB = 1024**3
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""On a CPU, run the model in the engine core's own process.

vLLM starts one more process to apply OpenMP's settings, and spins while it waits for it. We set them before vLLM is
imported, so that process is not needed. The spinning would take half a core from the model (a third of the speed on two
cores), and the start would be 14 s longer, because that process imports everything again. The class is named by its
path because vLLM does not accept "uni" on a CPU.
"""


TRANSFER = "lion-ray"
"""Our backend of vLLM's weight transfer (`weight_transfer`), by the name under which `plugin` registers it."""


def cpu_environment(threads: int, *, eager: bool) -> dict[str, str]:
    """Environment variables that let vLLM share a machine's cores. Set them before vLLM is imported.

    `eager`: compile nothing. With vLLM's own switch, torch still compiles a few functions at their first use (for
    example log-probabilities), which takes half a minute and needs a C++ compiler.
    """
    return ({"TORCHDYNAMO_DISABLE": "1"} if eager else {}) | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": str(threads),
        # glibc does not return freed blocks below a threshold that grows to 32 MB; loading weights frees many of them.
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
        # Idle threads sleep: spinning threads would take cores from other engines and servers on this machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def set_environment(config: StudentConfig) -> None:
    """Set this process's environment for its engine. Call it before vLLM is imported."""
    os.environ["VLLM_PORT"] = first_port(os.getpid())
    if not gpu_build():
        threads = max(1, cores() // config.most_engines)
        os.environ.update(cpu_environment(threads, eager=leaves_compilation(config.enforce_eager)))


def engine_arguments(config: StudentConfig, model_dir: Path, seed: int, gpus: float = 1.0) -> dict[str, Any]:
    """vLLM's settings for an engine with `gpus` GPUs, independent of the vLLM class that runs it."""
    arguments: dict[str, Any] = {
        "model": str(model_dir),
        "worker_extension_cls": "lion_ray.inference.worker.WeightsInPlace",
        "dtype": student_type(config.dtype),
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs or AT_ONCE,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": leaves_compilation(config.enforce_eager),
        "trust_remote_code": False,
        "load_format": "safetensors",
        "seed": seed % 2**31,
        "disable_log_stats": True,
    }
    if gpu_build():
        share = arguments["gpu_memory_utilization"] = memory_share(config.gpu_memory_utilization, gpus)
        if config.max_num_seqs is None:
            dtype, length = arguments["dtype"], config.max_model_len
            arguments["max_num_seqs"] = sequences_at_once(model_dir, dtype, length, share, gpus)
        return arguments
    arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * GIB)
    if config.tensor_parallel_size == 1:
        arguments["distributed_executor_backend"] = IN_PROCESS
    return arguments
