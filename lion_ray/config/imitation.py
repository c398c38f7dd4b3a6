"""The configuration of fine-tuning: hyperparameters, objective, filters, adapters, workers and checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lion_ray.config.plugins import CrossEntropyConfig, FilterConfig, ObjectiveConfig, PreferenceConfig
from lion_ray.config.section import DURATION, AttentionKernel, Precision, Section, by_machine, operational

LossOn = Literal["answer", "assistant_turns", "all_tokens"]


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685), merged into the weights at the end of each imitation."""

    rank: int = Field(16, ge=1)
    """The adapters' rank."""
    alpha: float = Field(32.0, gt=0)
    """The adapters' scale is alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers get adapters: their names, or all-linear."""
    base: Literal["auto", "nf4"] = "auto"
    """The frozen weights: in the type of imitation.precision, or in 4 bits (QLoRA), which needs bitsandbytes."""


class ImitationConfig(Section):
    """Fine-tuning on the teacher's answers (paper, section 3.1 and appendix)."""

    epochs: int = Field(3, ge=1)
    """Passes over the Train Pool."""
    learning_rate: float = Field(2e-5, gt=0)
    """AdamW's peak learning rate."""
    start: Literal["last", "base"] = "last"
    """Where an imitation starts: last checkpoint and new rows (as the paper), or base model and all rows so far."""
    later_learning_rate: float | None = Field(None, gt=0)
    """The peak from the second imitation on, when a few new rows could undo earlier learning; null: the same."""
    replay: float = Field(0.0, ge=0)
    """Earlier rows to train on again from the second imitation on, as a multiple of the new rows; the paper: none."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate schedule after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Warm-up, in which the learning rate rises from 0, as a share of the steps."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    batch_size: int = Field(128, ge=1)
    """Samples in one optimizer step, over all workers."""
    max_length: int = Field(1024, ge=16)
    """The longest prompt plus answer, in tokens, and the length of a packed row."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    precision: Precision = by_machine()
    """Arithmetic of forward and backward (auto: bf16 on a GPU, on a CPU the faster one; fp32: TF32 on a GPU)."""
    truncated: Literal["drop", "keep"] = "drop"
    """A truncated answer is dropped, or trained on without an end-of-sequence token."""
    loss_on: LossOn = "answer"
    """The tokens to learn: the teacher's answer, also the assistant's earlier turns, or all (instructions too)."""
    objective: ObjectiveConfig = CrossEntropyConfig()
    """The loss: cross_entropy, or your own class (docs/extending.md)."""
    filters: tuple[FilterConfig, ...] = ()
    """Filters that leave answers out of the training: by length, by pattern, or your own class."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; null: train all weights."""
    workers: int = operational(1, ge=1)
    """Ray Train workers; on GPUs, one GPU each."""
    use_gpu: bool | None = operational(None)
    """Train on GPUs; null: if the installed torch has CUDA."""
    num_cpus: float = operational(1.0, ge=0)
    """CPUs that each worker reserves in Ray."""
    sharding: Literal["full", "none"] = operational("full")
    """full: every worker holds a share of weights, gradients and optimizer state; none: each holds all of them."""
    replicas: int = operational(1, ge=1)
    """Groups of workers that each hold the model once, for less traffic between machines; divides workers."""
    micro_batch_rows: int = operational(4, ge=1)
    """Packed rows in a worker's forward pass."""
    activation_checkpointing: bool = operational(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    attention: AttentionKernel = operational("auto")
    """Kernel for packed rows; auto: on a GPU the first that is installed and right, on a CPU sdpa with a dense mask."""
    logits_at_once: int | None = operational(None, ge=0)
    """Labelled tokens whose logits exist at once; 0: all; null: on a GPU as many as fit into 1 GiB, on a CPU all."""
    compile: bool | None = operational(None)
    """Compile each layer and the loss with torch.compile; null: on a GPU."""
    checkpoint_every: str = operational("10min", pattern=DURATION)
    """Time between checkpoints within a fit; longer if writing them would take more than 5 % of the fit."""
    checkpoint_every_steps: int | None = operational(None, ge=1)
    """Optimizer steps between checkpoints within a fit, whatever they cost; null: by time (checkpoint_every)."""
    max_restarts: int = operational(3, ge=0)
    """How often a fit is restored from its last checkpoint after a worker died or hung."""
    collective_timeout_s: float = operational(900.0, ge=1)
    """Timeout of a collective operation between workers, in seconds; the error names the workers that are missing."""

    @model_validator(mode="after")
    def _can_be_held(self) -> ImitationConfig:
        if self.workers % self.replicas:
            raise ValueError(f"replicas: {self.replicas} does not divide workers ({self.workers}); set it to a divisor")
        if self.lora is not None and self.lora.base == "nf4" and self.workers > 1 and self.sharding == "full":
            raise ValueError("lora.base: nf4 weights cannot be sharded; set sharding to none, or lora.base to auto")
        if self.start == "base" and (self.replay or self.later_learning_rate is not None):
            raise ValueError("start: base trains on all rows anew; leave out replay and later_learning_rate")
        if isinstance(self.objective, PreferenceConfig) and self.loss_on != "answer":
            raise ValueError("loss_on: preference compares answers and nothing before them; set loss_on to answer")
        return self

    def of_iteration(self, iteration: int) -> ImitationConfig:
        """The hyperparameters of one imitation, numbered from 1."""
        if iteration == 1 or self.later_learning_rate is None:
            return self
        return self.model_copy(update={"learning_rate": self.later_learning_rate})
