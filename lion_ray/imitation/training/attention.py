"""Which kernel computes the attention of packed rows, chosen once per fit.

Invariants:
- Every kernel computes what SDPA computes with a dense mask: causal attention within each sample. A kernel is used only
  if it gave this model's losses on this device (`choose`), so a missing or wrong kernel costs speed, never a result.
- On a CPU the choice is SDPA with the dense mask, and nothing is tried.

A dense mask is [rows, 1, length, length] and keeps SDPA from its flash kernel; the others know only the borders between
samples, or skip the blocks in which nothing is attended to. This module does not know losses, steps or optimizers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from lion_ray.core.errors import ConfigError, first_line
from lion_ray.imitation.training.data import Batch

DENSE = "sdpa"
"""transformers' name for SDPA with a dense mask."""
_PREFIX = "lion_"
ORDER = ("flash_attn_3", "flash_attn", "varlen", "flex")
"""The kernels besides the dense mask, the preferred one first: flash-attn for Hopper GPUs (`flash_attn_interface`),
flash-attn 2, torch's own variable-length flash attention, FlexAttention."""

Varlen = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float, int], torch.Tensor]
"""(query, key, value, starts, longest, scale, keys to the left; -1: all). Tensors are [tokens, heads, head size]."""


def borders(batch: Batch, model: nn.Module) -> dict[str, Any]:
    """The arguments with which a model passes the borders between samples to its attention, if its kernel uses them."""
    config: Any = getattr(model, "config", None)
    if not str(getattr(config, "_attn_implementation", "")).startswith(_PREFIX):
        return {}
    cu, longest = batch.starts, batch.longest
    return {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": longest, "max_length_k": longest}


def use(model: Any, kernel: str) -> None:
    """Switch the model to a kernel of `ORDER`, or to `DENSE`."""
    register()
    model.set_attn_implementation(kernel if kernel == DENSE else _PREFIX + kernel)


@functools.cache
def register() -> None:
    """Make the kernels known to transformers under this module's names."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name in ORDER:
        flex = name == "flex"
        AttentionInterface.register(_PREFIX + name, _flex if flex else functools.partial(_varlen, name))
        AttentionMaskInterface.register(_PREFIX + name, _flex_mask if flex else _no_mask)


def available(model: Any, device: torch.device) -> list[str]:
    """The kernels of `ORDER` that this machine has and that this model can use."""
    if device.type != "cuda":
        return []
    return [name for name in ORDER if supports(model, name) and _installed(name, device)]


def supports(model: Any, kernel: str) -> bool:
    """Whether a model declares to work with a kernel, and has nothing that the kernel would leave out."""
    config = model.config.get_text_config()
    dropout = (value for name, value in vars(config).items() if "drop" in name and "att" in name)
    if any(isinstance(value, float) and value > 0 for value in dropout):
        return False
    if kernel == "flex":
        return bool(getattr(model, "_supports_flex_attn", False))
    # Flash attention gets no mask: other kinds of layers would silently lose theirs.
    plain = set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
    return plain and bool(getattr(model, "_supports_flash_attn", False))


def _installed(name: str, device: torch.device) -> bool:
    if name == "flash_attn_3":
        hopper = torch.cuda.get_device_capability(device)[0] == 9
        return hopper and importlib.util.find_spec("flash_attn_interface") is not None
    if name == "varlen":
        # Before torch 2.11 it has no window and no scale.
        found = importlib.util.find_spec("torch.nn.attention.varlen") is not None
        return found and "window_size" in inspect.signature(_torch_varlen()).parameters
    return name != "flash_attn" or importlib.util.find_spec("flash_attn") is not None


@torch.no_grad()
def choose(
    model: Any,
    wanted: str,
    losses: Callable[[], torch.Tensor],
    exact: Callable[[], torch.Tensor],
    device: torch.device,
    agreed: Callable[[bool], bool],
    say: Callable[[str], None],
) -> str:
    """Switch the model to the first kernel that gives the dense mask's losses; returns its name.

    Args:
        wanted: a kernel, or ``auto``.
        losses: the losses of some packed samples in the precision of the training.
        exact: the same in float32.
        agreed: whether every process of the fit says so.
        say: is told the choice, and why others were passed over.

    Raises:
        ConfigError: the kernel that was asked for cannot be used.
    """
    if wanted == DENSE or (wanted == "auto" and device.type != "cuda"):
        return DENSE
    use(model, DENSE)
    truth = exact()
    usual = float((losses() - truth).abs().mean())
    why = ""
    for name in available(model, device) if wanted == "auto" else [wanted]:
        try:
            if not supports(model, name):
                raise ValueError("this model has layers that it does not compute")
            use(model, name)
            check_backward(name, model, device)
            off = float((losses() - truth).abs().mean())
            # Other kernels round otherwise, but not more.
            good, why = (
                off <= 3 * usual + 1e-3,
                f"its losses are off by {off:.2g}, those of a dense mask by {usual:.2g}",
            )
        except (RuntimeError, ValueError, TypeError, KeyError, ImportError, NotImplementedError) as error:
            good, why = False, first_line(error)
        if agreed(good):
            say(f"attention: {name}")
            return name
        say(f"attention: not {name}: {why}")
    use(model, DENSE)
    if wanted != "auto":
        raise ConfigError(
            f"imitation.attention: {wanted} cannot be used with {type(model).__name__} on {device.type}: {why}; "
            "set it to auto"
        )
    say("attention: a dense mask, which is slow")
    return DENSE


def check_backward(name: str, model: Any, device: torch.device) -> None:
    """Raise RuntimeError if a kernel's gradients, for heads of this model's shape, are not those of a dense mask."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lengths = (37, 91)
    width = sum(lengths)
    random = torch.Generator(device).manual_seed(0)
    shapes = (heads, groups, groups, heads)
    q, k, v, out = (torch.randn(1, n, width, size, generator=random, device=device, dtype=dtype) for n in shapes)
    places = torch.cat([torch.arange(n, device=device) for n in lengths])
    sample = (places == 0).cumsum(0)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    mask = causal & (sample[:, None] == sample[None, :])
    starts = torch.tensor([0, lengths[0], width], dtype=torch.int32, device=device)
    given = {"cu_seq_lens_q": starts, "max_length_q": max(lengths), "scaling": size**-0.5}

    def gradients(attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        leaves = [one.clone().requires_grad_() for one in (q, k, v)]
        with torch.enable_grad():
            attend(*leaves).backward(out)
        return torch.cat([one.grad.flatten().float() for one in leaves if one.grad is not None])

    def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (one.repeat_interleave(heads // groups, 1) for one in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def mine(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if name == "flex":
            found = _flex(model, q, k, v, _block_mask(_same_sample(sample), 1, width, device), **given)[0]
        else:
            found = _varlen(name, model, q, k, v, None, **given)[0]
        return found.transpose(1, 2)

    expected = gradients(dense)
    off = float((gradients(mine) - expected).norm() / expected.norm())
    if not off < 0.02:
        raise RuntimeError(f"its gradients are off by {off:.2g} of their size")


def _no_mask(**_: Any) -> None:
    """The kernel gets the borders between samples instead."""


@torch.compiler.disable
def _varlen(
    kernel: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface for the kernels that take borders between samples."""
    if softcap is not None or s_aux is not None or dropout:
        raise NotImplementedError("no soft cap, sink or dropout in attention")
    rows, _, width, size = query.shape
    dtype = _arithmetic(query)
    q, k, v = (one.transpose(1, 2).flatten(0, 1).to(dtype) for one in (query, key, value))
    half = query.is_cuda and dtype in (torch.bfloat16, torch.float16)
    attend = _half_kernel(kernel) if half else _one_by_one
    scale = size**-0.5 if scaling is None else scaling
    left = -1 if sliding_window is None else sliding_window - 1
    found = attend(q, k, v, kwargs["cu_seq_lens_q"], kwargs["max_length_q"], scale, left)
    return found.unflatten(0, (rows, width)), None


def _arithmetic(query: torch.Tensor) -> torch.dtype:
    """Norms after a projection return float32 under autocast; kernels that autocast does not know need its type."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def _one_by_one(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, longest: int, scale: float, left: int
) -> torch.Tensor:
    """Sample by sample, for float32, which flash attention does not take (measurements), and for CPUs (tests)."""
    found = []
    for one in zip(*(x.split(starts.diff().tolist()) for x in (q, k, v)), strict=True):
        n = len(one[0])
        mask = None
        if 0 <= left < n - 1:
            mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril().triu(-left)
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in one)
        shared = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared
        )
        found.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(found)


@functools.cache
def _half_kernel(name: str) -> Varlen:
    if name == "varlen":
        function = _torch_varlen()
        shared = {"enable_gqa": True} if "enable_gqa" in inspect.signature(function).parameters else {}
        return lambda q, k, v, starts, longest, scale, left: function(
            q, k, v, starts, starts, longest, longest, scale=scale, window_size=(left, 0), **shared
        )
    package = importlib.import_module("flash_attn_interface" if name == "flash_attn_3" else "flash_attn")

    def flash(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, longest: int, scale: float, left: int
    ) -> torch.Tensor:
        found = package.flash_attn_varlen_func(
            q, k, v, starts, starts, longest, longest, softmax_scale=scale, causal=True, window_size=(left, 0)
        )
        return found[0] if isinstance(found, tuple) else found

    return flash


def _torch_varlen() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    return cast("Callable[..., torch.Tensor]", varlen_attn)  # a pair only where it is asked for


@torch.compiler.disable  # it is compiled by itself
def _flex(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface for FlexAttention."""
    if s_aux is not None or dropout:
        raise NotImplementedError("no sink or dropout in attention")
    dtype = _arithmetic(query)
    query, key, value = (one.to(dtype) for one in (query, key, value))
    score = None
    if softcap is not None:

        def score(value: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return softcap * torch.tanh(value / softcap)

    found = _flex_kernel(query.device.type)(
        query, key, value, score_mod=score, block_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2).contiguous(), None


@functools.cache
def _flex_kernel(kind: str) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Without compilation it makes every score; on a CPU it is for tests alone (it has no backward pass there).
    return cast("Callable[..., torch.Tensor]", flex_attention if kind == "cpu" else torch.compile(flex_attention))


def _flex_mask(
    batch_size: int, kv_length: int, mask_function: Callable[..., Any], device: torch.device, **_: Any
) -> Any:
    """transformers' mask interface: it has put the borders, the window and the order into `mask_function`."""
    return _block_mask(mask_function, batch_size, kv_length, device)


def _block_mask(function: Callable[..., Any], rows: int, width: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    kind = torch.device(device).type
    return create_block_mask(function, rows, None, width, width, device=str(device), _compile=kind != "cpu")


def _same_sample(sample: torch.Tensor) -> Callable[..., torch.Tensor]:
    def seen(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (sample[query] == sample[key])

    return seen
