"""An extension of vLLM's worker (``worker_extension_cls``) that loads all of a checkpoint's weights in place."""

from __future__ import annotations

from typing import Any


class WeightsInPlace:
    """A mixin for vLLM's worker; it uses the worker's `model_runner`."""

    model_runner: Any
    _weight_update_active: bool

    def take_weights(self, folder: str) -> None:
        """Replace the served weights by those in `folder`."""
        self._abandon_transfer()
        self.model_runner.reload_weights(weights_path=folder)
        update_tied_heads(self.model_runner.get_model(), self.model_runner.model_config)

    def _abandon_transfer(self) -> None:
        """End a transfer of weights that failed midway; vLLM has no call for that, and refuses to begin another."""
        if (transfer := getattr(self, "weight_transfer_engine", None)) is not None:
            transfer.abandon()
            self._weight_update_active = False


def tied_heads(model: Any, model_config: Any) -> list[tuple[Any, Any]]:
    """The output heads that are tied to an embedding, each with its embedding."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    if not model_config.hf_text_config.tie_word_embeddings:
        return []
    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    embeddings = [layer for layer in layers if not isinstance(layer, ParallelLMHead)]
    return [(head, next(one for one in embeddings if one.weight.shape == head.weight.shape)) for head in heads]


def update_tied_heads(model: Any, model_config: Any) -> None:
    """Give tied heads their embedding's new weights.

    A checkpoint does not store a tied head, so vLLM's reloading does not update it. On a CPU the head is a packed copy
    of the embedding and would keep its old weights.
    """
    for head, embedding in tied_heads(model, model_config):
        head.weight = embedding.weight
        head.quant_method.process_weights_after_loading(head)
