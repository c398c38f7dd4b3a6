"""What only a GPU can show; skipped, saying so, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.inference import gpu_build
from tests.tiny import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


def test_this_machine_has_the_gpu_build_of_vllm() -> None:
    assert gpu_build()


def test_bf16_training_on_a_gpu_lowers_the_loss_and_keeps_float32_weights(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "base")
    rows = [{"instruction": f"Describe item {n}.", "answer": f"Item {n}.", "finish_reason": "stop"} for n in range(16)]
    spec = TrainSpec(
        model_dir=str(tmp_path / "base"),
        output_dir=str(tmp_path / "out"),
        epochs=4,
        batch_size=4,
        learning_rate=1e-3,
        max_length=96,
        precision="bf16",
        serve_dtype="bfloat16",
    )
    metrics = train(spec, rows=rows, heldout_rows=rows[:4], report=lambda metrics, folder: None)
    assert metrics["heldout_loss_after"] < metrics["heldout_loss_before"]

    from safetensors.torch import load_file

    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
