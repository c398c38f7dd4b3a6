"""What this project adds to vLLM's worker (``worker_extension_cls``): taking a checkpoint's weights in place, whole."""

from __future__ import annotations

from typing import Any


class WeightsInPlace:
    """Mixed into vLLM's worker, whose `model_runner` it uses."""

    model_runner: Any

    def take_weights(self, folder: str) -> None:
        """Load the weights in `folder` over those that are served.

        vLLM's `reload_weights` leaves an output head alone that a checkpoint does not name since it is tied to the
        embedding; but on a CPU the head is a laid-out copy of the embedding, and would stay as it was.
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
