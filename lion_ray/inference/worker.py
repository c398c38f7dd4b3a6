"""An extension of vLLM's worker (``worker_extension_cls``) that loads all of a checkpoint's weights in place."""

from __future__ import annotations

from typing import Any


class WeightsInPlace:
    """A mixin for vLLM's worker; it uses the worker's `model_runner`."""

    model_runner: Any

    def take_weights(self, folder: str) -> None:
        """Replace the served weights by those in `folder`.

        A checkpoint does not store an output head that is tied to the embedding, so vLLM's `reload_weights` does not
        update it. On a CPU the head is a packed copy of the embedding and would keep its old weights.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        self.model_runner.reload_weights(weights_path=folder)
        model = self.model_runner.get_model()
        if not self.model_runner.model_config.hf_text_config.tie_word_embeddings:
            return
        layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
        heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
        embeddings = [layer for layer in layers if not isinstance(layer, ParallelLMHead)]
        for head in heads:
            embedding = next(layer for layer in embeddings if layer.weight.shape == head.weight.shape)
            head.weight = embedding.weight
            head.quant_method.process_weights_after_loading(head)
