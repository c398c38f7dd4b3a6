"""The cross-entropy of labelled tokens, some tokens at a time.

Invariants:
- The losses and gradients are those of all logits at once, to float rounding.
- The logits of at most `rows` tokens exist at a time: a large vocabulary's logits take more memory than the model.

The head runs as the module that it is (with a bias, with adapters, sharded), a second time in the backward pass. This
module does not know models other than their head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

Reduction = Literal["none", "sum"]
_LOGITS = 2**28
"""Logits at once on a GPU: 1 GiB of them in float32."""
_CAP = "final_logit_softcapping"
"""transformers' name for a soft cap on logits (Gemma)."""


def rows_at_once(wanted: int | None, vocabulary: int, device: torch.device) -> int:
    """How many tokens' logits may exist at once; 0: all."""
    if wanted is not None:
        return wanted
    return max(256, _LOGITS // vocabulary // 256 * 256) if device.type == "cuda" else 0


TokenLoss = Callable[[torch.Tensor, torch.Tensor, Reduction], torch.Tensor]
"""(logits, targets, reduction): the cross-entropy in nats, in float32."""


def token_loss(logits: torch.Tensor, targets: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """The cross-entropy of all tokens, or each one's. Compiled, it makes no copy of the logits in float32."""
    return F.cross_entropy(logits.float(), targets, reduction=reduction)


def in_chunks(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    targets: torch.Tensor,
    rows: int,
    reduction: Reduction,
    *,
    loss: TokenLoss = token_loss,
    random: bool = False,
) -> torch.Tensor:
    """Each token's cross-entropy in nats, or their sum, from the hidden states before the head.

    `random`: the head draws random numbers, which have to be the same in the backward pass.
    """

    def some(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss(head(hidden), targets, reduction)

    pairs = zip(hidden.split(rows), targets.split(rows), strict=True)
    if not torch.is_grad_enabled():
        found = [some(*pair) for pair in pairs]
    else:
        found = [checkpoint(some, *pair, use_reentrant=False, preserve_rng_state=random) for pair in pairs]
    return torch.cat(found) if reduction == "none" else torch.stack(found).sum()


class Head:
    """A model's head, which returns losses instead of logits inside `losing`.

    The model's own forward pass still calls it, so that hooks, adapters and sharding act as ever. A cap on logits is
    applied here; a model that changes its logits in another way would change the losses, which its caller must check.
    """

    def __init__(self, model: Any, loss: TokenLoss) -> None:
        self._loss = loss
        module = model.get_output_embeddings()
        self._config = model.config.get_text_config()
        self._given: tuple[torch.Tensor, int, Reduction] | None = None
        self._cap: float | None = None
        self._module, self._forward = module, module.forward
        module.forward = self._call

    @contextmanager
    def losing(self, targets: torch.Tensor, rows: int, reduction: Reduction) -> Iterator[None]:
        """The logits that the model returns are [n, 1] losses: one for each token, or their sum."""
        self._given, self._cap = (targets, rows, reduction), getattr(self._config, _CAP, None)
        if self._cap is not None:
            setattr(self._config, _CAP, None)
        try:
            yield
        finally:
            if self._cap is not None:
                setattr(self._config, _CAP, self._cap)
            self._given = self._cap = None

    def _call(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._given is None:
            return cast("torch.Tensor", self._forward(hidden, *args, **kwargs))
        cap = self._cap

        def logits(some: torch.Tensor) -> torch.Tensor:
            found = self._forward(some)
            return found if cap is None else cap * torch.tanh(found / cap)

        return in_chunks(logits, hidden, *self._given, loss=self._loss, random=self._random()).view(-1, 1)

    def _random(self) -> bool:
        return any(isinstance(one, nn.Dropout) for one in self._module.modules())
