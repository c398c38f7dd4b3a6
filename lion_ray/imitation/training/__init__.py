"""Fine-tuning: torch and transformers, no ray.

`spec` the settings of one fit · `data` rows to batches, `tokens` if there are many · `model` logits, adapters,
sharding · `attention`, `loss`, `speed` what is fast on a GPU · `flops` tokens/s and MFU · `fit` the loop · `state`
checkpoints within a fit · `output` the result folder.

Without Ray: ``python -m lion_ray.imitation.training SPEC.json``.
"""
