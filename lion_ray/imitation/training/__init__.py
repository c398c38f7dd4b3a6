"""Fine-tuning: torch and transformers, no ray.

`spec` the settings of one fit · `data` rows to batches, `tokens` if there are many, `balance` batches to processes ·
`model` logits, adapters, sharding · `held` the student, whole or sharded · `attention`, `loss`, `speed` what is fast on
a GPU · `flops` tokens/s and MFU · `fit` the loop · `checkpoints` when they are written, `state` what is in them ·
`output` the result folder.

Without Ray: ``python -m lion_ray.imitation.training SPEC.json``.
"""
