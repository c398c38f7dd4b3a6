"""How many sequences fit a GPU's memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lion_ray.inference import memory
from lion_ray.inference.memory import AT_ONCE, kv_bytes_per_token, sequences, sequences_at_once
from tests.tiny import make_tiny_model

LLAMA_7B = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
LLAMA_13B = {"num_hidden_layers": 40, "num_attention_heads": 40, "hidden_size": 5120}
QWEN = {"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "hidden_size": 1536}
GIB = 1024**3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA_7B, 512 * 1024),
        (LLAMA_13B, 800 * 1024),
        (QWEN, 28 * 1024),
        ({**QWEN, "head_dim": 256}, 56 * 1024),
        ({"text_config": QWEN}, 28 * 1024),
        ({"num_hidden_layers": 2, "num_attention_heads": 2, "kv_lora_rank": 512}, None),
        ({"model_type": "mamba"}, None),
    ],
)
def test_the_cache_of_a_token(config: dict[str, Any], expected: int | None) -> None:
    assert kv_bytes_per_token(config, 2) == expected


@pytest.mark.parametrize(
    ("kv_gib", "per_token", "length", "expected"),
    [
        (57, 512 * 1024, 2048, 112),  # 7B on a GPU of 80 GB
        (44, 800 * 1024, 2048, 56),
        (8, 28 * 1024, 2048, 256),  # more would not be faster
        (1, 512 * 1024, 8192, 8),
        (-3, 512 * 1024, 2048, 8),  # vLLM itself tells that the model does not fit
    ],
)
def test_sequences(kv_gib: float, per_token: int, length: int, expected: int) -> None:
    assert sequences(kv_gib * GIB, per_token, length) == expected


def test_from_a_folder_and_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    per_token = kv_bytes_per_token(config, 2)
    assert per_token
    assert sequences_at_once(tmp_path / "tiny", "float16", 128, 0.9, 1) == AT_ONCE, "no GPU here to ask"
    room = per_token * 64 * 40
    monkeypatch.setattr(memory, "gpu_bytes", lambda: 4 * GIB + 2 * room)
    parameters = memory.count_parameters(tmp_path / "tiny")
    assert parameters
    fits = (room - 2 * parameters) / (per_token * 64)
    assert sequences_at_once(tmp_path / "tiny", "float16", 128, 0.5, 0.5) == max(8, int(fits // 8) * 8)
    assert sequences_at_once(tmp_path / "none", "float16", 128, 0.5, 0.5) == AT_ONCE
