"""Matrix products with 8-bit weights on a CPU without VNNI: a linear kernel for vLLM, and its output head.

Invariants:
- Each row is quantized to 8 bits on its own, so an answer does not depend on the rest of the batch.
- Weights lie within ±63 (`models.quantize.levels`): this CPU adds two products in 16 bits, and 255 * 63 * 2 still fits.
- Where vLLM's own kernel is faster, this module is not used.

vLLM's kernel uses oneDNN, which repacks the weights at every call on a CPU that has only AVX2. FBGEMM (in PyTorch)
packs them once: five times faster for 64 rows here, and twice as fast as float32.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

REPLACES = "CPUInt8ScaledMMLinearKernel"
"""The vLLM kernel that ``VLLM_DISABLED_KERNELS`` must name so that vLLM chooses this one."""
_ZERO = 128
"""The zero point of the rows' unsigned integers."""


def multiply(rows: torch.Tensor, packed: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """``rows`` [n, in] times the weights from `pack`, plus `bias` [out]; returns [n, out] in the rows' type."""
    import torch

    scale = rows.float().abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    # The operator rounds the scaled rows to integers and returns their product in float32.
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(rows / scale, 1.0, _ZERO, packed)
    product *= scale
    return (product if bias is None else product + bias).to(rows.dtype)


def pack(weight: torch.Tensor, scale: torch.Tensor) -> Any:
    """Pack int8 weights [out, in] and their scales [out] for FBGEMM."""
    import torch

    zeros = torch.zeros(weight.shape[0], dtype=torch.long)
    integers = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(integers, None)


def wanted() -> bool:
    """Whether this process should use the kernel."""
    return REPLACES in os.environ.get("VLLM_DISABLED_KERNELS", "")


def lay_out_head(layer: Any) -> None:
    """Keep an output head, which is not quantized to 8 bits, in float16; its products are float32.

    It is half as large as vLLM's float32 copy (0.5 GB less for a vocabulary of 150,000), and for few rows the product,
    which is limited by memory bandwidth, takes half as long.
    """
    import torch

    torch.backends.quantized.engine = "fbgemm"
    packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.data, None)

    def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        found = torch.ops.quantized.linear_dynamic_fp16(rows, packed)
        return found if bias is None else found + bias

    layer.cpu_linear = product
    shorten(layer.weight)


def shorten(weight: Any) -> None:
    """Keep the rows that a tied embedding looks up in bfloat16, if that loses nothing.

    Most checkpoints are in bfloat16: half the memory holds the same numbers (0.5 GB less for a vocabulary of 150,000).
    """
    short = weight.data.bfloat16()
    if short.to(weight.dtype).equal(weight.data):
        weight.data = short
        weight.shortened = True


def look_up(ids: torch.Tensor, weight: Any) -> torch.Tensor:
    """The rows of a float32 embedding, which may have been through `shorten`."""
    import torch

    rows = torch.nn.functional.embedding(ids, weight)
    return rows.float() if getattr(weight, "shortened", False) else rows


def register() -> None:
    """Register the kernel with vLLM."""
    import torch
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import (
        Int8ScaledMMLinearKernel,
        Int8ScaledMMLinearLayerConfig,
    )
    from vllm.platforms import current_platform
    from vllm.platforms.interface import PlatformEnum

    class FbgemmInt8LinearKernel(Int8ScaledMMLinearKernel):
        """Weights have one scale per output channel; each row has its own scale, computed at run time."""

        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
            if not current_platform.is_cpu() or "fbgemm" not in torch.backends.quantized.supported_engines:
                return False, "needs an x86 CPU"
            return True, None

        @classmethod
        def can_implement(cls, c: Int8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
            if c.is_static_input_scheme or not c.input_symmetric or not c.is_channelwise:
                return False, "only symmetric dynamic quantization of rows, and weights with a scale per channel"
            return True, None

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            weight_name, scale_name = self.layer_param_names[:2]
            torch.backends.quantized.engine = "fbgemm"
            self.packed = pack(getattr(layer, weight_name).data, getattr(layer, scale_name).data.flatten())
            setattr(layer, weight_name, None)  # the packed copy replaces them

        def apply_weights(
            self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            rows = x.reshape(-1, x.shape[-1])
            return multiply(rows, self.packed, bias).reshape(*x.shape[:-1], -1)

    register_linear_kernel(FbgemmInt8LinearKernel, PlatformEnum.CPU, "int8")
