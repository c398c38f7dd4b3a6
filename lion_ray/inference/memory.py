"""How many sequences a GPU's memory holds at once: what is left beside the weights, by the key-value bytes of a token.

This module knows a model's config.json and numbers; only `gpu_bytes` asks the machine.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

from lion_ray.models.resolve import count_parameters

AT_ONCE = 64
"""Sequences at once where memory does not decide: on a CPU, or if the model's layout or the GPU's size is unknown."""
_MOST_AT_ONCE = 256
"""More would hardly be faster, and the shards in flight (`actors.engine_slot`) would not fill them."""
_OVERHEAD_BYTES = 2 * 1024**3
"""Activations, CUDA graphs and the CUDA context."""
_FILLED = 0.5
"""A sequence's usual length as a share of max_model_len; vLLM preempts sequences if more of them are long."""
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def sequences_at_once(folder: Path, dtype: str, max_model_len: int, utilization: float, gpus: float) -> int:
    """Sequences for vLLM's `max_num_seqs`, for the model in `folder` on the GPUs of this process.

    `utilization`: vLLM's share of a whole GPU's memory; `gpus`: over which the model is split, if more than one.
    """
    parameters, memory = count_parameters(folder), gpu_bytes()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return AT_ONCE
    per_token = kv_bytes_per_token(config, _BYTES[dtype])
    if per_token is None or parameters is None or memory is None:
        return AT_ONCE
    split = max(1, math.ceil(gpus))
    weights = parameters * (1 if "quantization_config" in config else _BYTES[dtype])
    return sequences(split * memory * utilization - weights - split * _OVERHEAD_BYTES, per_token, max_model_len)


def sequences(kv_bytes: float, per_token: int, max_model_len: int) -> int:
    """How many sequences a key-value cache of `kv_bytes` holds; a multiple of 8 between 8 and 256."""
    found = kv_bytes / (per_token * max(1.0, _FILLED * max_model_len))
    return max(8, min(_MOST_AT_ONCE, math.floor(found / 8) * 8))


def kv_bytes_per_token(config: dict[str, Any], number_bytes: int) -> int | None:
    """The key-value cache of one token in all layers; None for a model with another kind of cache."""
    config = config.get("text_config", config)
    if config.get("kv_lora_rank") or "num_hidden_layers" not in config or "num_attention_heads" not in config:
        return None
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * head * number_bytes)


def gpu_bytes() -> int | None:
    """The memory of this process's first GPU; None without one."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", first]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return int(done.stdout.split()[0]) * 1024**2
    except (subprocess.SubprocessError, OSError, ValueError, LookupError):
        return None
