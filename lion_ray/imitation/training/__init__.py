"""Fine-tuning: torch and transformers, no ray.

`spec` what one fit needs to know · `data` rows to batches · `model` loss, adapters, sharding · `fit` the loop ·
`state` checkpoints within a fit · `output` the folder it leaves.

Without Ray: ``python -m lion_ray.imitation.training SPEC.json``.
"""
