"""Fine-tuning: torch and transformers, no ray.

`spec` the settings of one fit · `data` rows to batches · `balance` batches to processes · `model` a model, its loss ·
`held` the student, whole or sharded · `fit` the loop · `checkpoints` when they are written, `state` what is in them ·
`output` the result folder.

Without Ray: ``python -m lion_ray.imitation.training SPEC.json``.
"""
