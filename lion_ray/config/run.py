"""What a run is made of, beside its endpoints: data, roles, the student and its training, and how it is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lion_ray.config.checks import EvaluationConfig
from lion_ray.config.endpoints import EndpointConfig
from lion_ray.config.plugins import (
    CrossEntropyConfig,
    FilterConfig,
    ObjectiveConfig,
    PromptSourceConfig,
    TemplatePromptConfig,
)
from lion_ray.config.referee import RefereeConfig
from lion_ray.config.section import Dtype, Mode, Precision, Section, by_machine, operational
from lion_ray.config.tracking import TrackingConfig
from lion_ray.core.addresses import check_storage

SHARD_ROWS, MAX_SHARD_ROWS, MANY_SHARDS = 64, 512, 256
"""Where `shard_rows` is not given: rows of a shard in a small pool, in a vast one, and the shards that are many."""


class DataConfig(Section):
    """The user's instructions."""

    pool: str
    """Where the instructions are: a .json, .jsonl or .parquet file, or hf:NAME[:CONFIGURATION][:SPLIT] of datasets."""
    heldout: str | int = 0
    """Instructions never trained on, to measure with: a file like the pool's, or how many to set aside from it."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many instructions of the pool; null for all."""
    on_bad_row: Literal["stop", "quarantine"] = "stop"
    """What a malformed row does: stop the run with its file and line, or go to a quarantine file."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation sets, as files or folders: instructions too near one of their questions are never trained on."""
    licence: str | None = operational(None)
    """The instructions' licence, such as Apache-2.0 or CC-BY-4.0, for an export's cards; null where it is unknown."""
    source: str | None = operational(None)
    """Where the instructions come from, in your words, for the cards of an export."""


class TeacherConfig(Section):
    """The model to learn from (paper, section 3.1)."""

    endpoint: str = "default"
    """Which of `endpoints` answers."""
    fallbacks: tuple[str, ...] = operational(())
    """Endpoints that answer, in this order, while that one is down or refuses; each answer says who gave it."""
    mode: Mode = operational("live")
    """live calls, or the endpoint's Batch API: cheaper, within a day."""
    prompt: str = "answer"
    """The template: a built-in name, or a .yaml file."""
    source: PromptSourceConfig = TemplatePromptConfig()
    """What it is asked for an instruction: the template (`prompt`), or a class of your own."""
    temperature: float = Field(0.7, ge=0, le=2)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling's mass."""
    max_tokens: int = Field(1024, ge=1)
    """The longest answer, in the teacher's tokens."""


class GeneratorConfig(Section):
    """The writer of new instructions (paper, section 3.3)."""

    endpoint: str = "default"
    """Which of `endpoints` writes."""
    mode: Mode = operational("live")
    """live calls, or the endpoint's Batch API: cheaper, within a day."""
    hard_prompt: str = "hard"
    """Template for hard seeds: hard, hard-turns (examples as chat turns, for small models), or a .yaml file."""
    easy_prompt: str = "easy"
    """Template for easy seeds: easy, easy-turns, or a .yaml file."""
    temperature: float = Field(1.0, ge=0, le=2)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling's mass."""
    tokens_per_word: float = Field(4.0, gt=0)
    """The answer's length limit as a multiple of the seed's words."""
    min_tokens: int = Field(32, ge=8)
    """The length limit's floor, in tokens, so that a short seed can have a whole sentence for a child."""


class StudentConfig(Section):
    """The model that learns, and the engines that run it."""

    model: str
    """The model to start from: a folder, a hub name, or bundled:NAME."""
    prompt: str = "chat"
    """How an instruction becomes a prompt: chat (the model's chat template), instruction (Lion's), or a .txt file."""
    temperature: float = Field(0.7, ge=0, le=2)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling's mass."""
    max_tokens: int = Field(1024, ge=1)
    """The longest answer, in the student's tokens."""
    dtype: Dtype = by_machine()
    """The engines' weights (checkpoints are float32); auto: float16 on a GPU, on a CPU the type it computes fastest."""
    max_model_len: int = Field(2048, ge=16)
    """The longest prompt plus answer, in tokens; a prompt that leaves no room is quarantined."""
    min_engines: int = operational(1, ge=0)
    """Engines that stay while a checkpoint is in use; with 0 the last one goes too when it has nothing to do."""
    max_engines: int | None = operational(None, ge=1)
    """Engines that answer side by side when there is work for so many; null: as many as min_engines, at least 1."""
    idle_timeout_s: float = operational(60.0, ge=0)
    """An engine beyond min_engines that had nothing to do for so many seconds ends."""
    tensor_parallel_size: int = operational(1, ge=1)
    """GPUs for each engine."""
    use_gpu: bool | None = operational(None)
    """Run engines on GPUs; null: where the installed vLLM is the GPU build."""
    num_cpus: float = operational(1.0, ge=0)
    """CPUs that each engine reserves in Ray."""
    max_num_seqs: int = operational(64, ge=1)
    """Answers that an engine writes at once."""
    gpu_memory_utilization: float = operational(0.9, gt=0, le=1)
    """Share of a GPU's memory an engine may take."""
    kv_cache_gib: float = operational(1.0, gt=0)
    """Memory for an engine's key-value cache on a CPU, in GiB."""
    enforce_eager: bool | None = operational(None)
    """Skip compilation: starts sooner, answers slower; null: on a CPU, where compiling takes minutes."""
    start_timeout_s: float = operational(900.0, gt=0)
    """How long an engine may take to start once it has its resources, in seconds."""

    @property
    def most_engines(self) -> int:
        """How many engines there may be."""
        return self.max_engines or max(1, self.min_engines)

    @model_validator(mode="after")
    def _engines_in_order(self) -> StudentConfig:
        if self.max_engines is not None and self.max_engines < self.min_engines:
            raise ValueError(f"max_engines ({self.max_engines}) is less than min_engines ({self.min_engines})")
        return self


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


class ImitationConfig(Section):
    """Fine-tuning on the teacher's answers (paper, section 3.1 and appendix)."""

    epochs: int = Field(3, ge=1)
    """Passes over the Train Pool."""
    learning_rate: float = Field(2e-5, gt=0)
    """AdamW's peak learning rate."""
    later_learning_rate: float | None = Field(None, gt=0)
    """The peak from the second imitation on, where few new rows could undo what was learned; null: the same."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate's course after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    batch_size: int = Field(128, ge=1)
    """Samples in one optimizer step, over all workers."""
    max_length: int = Field(1024, ge=16)
    """The longest prompt plus answer, in tokens, and the length of a packed row."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    precision: Precision = by_machine()
    """Arithmetic of forward and backward pass (auto: bf16 on a GPU, on a CPU what is faster); weights are float32."""
    truncated: Literal["drop", "keep"] = "drop"
    """An answer that was cut off is dropped, or trained on without an end-of-sequence token."""
    loss_on: Literal["answer", "assistant_turns"] = "answer"
    """What carries labels: the teacher's answer, or of a longer conversation the assistant's earlier turns too."""
    objective: ObjectiveConfig = CrossEntropyConfig()
    """What a fit minimises: cross_entropy, or a class of your own (docs/extending.md)."""
    filters: tuple[FilterConfig, ...] = ()
    """Leave these answers out of the training: by length, by pattern, or by a class of your own."""
    lora: LoraConfig | None = None
    """Train adapters instead of every weight; null trains every weight."""
    workers: int = operational(1, ge=1)
    """Ray Train workers; one GPU each where GPUs are used."""
    use_gpu: bool | None = operational(None)
    """Train on GPUs; null: where the installed torch has CUDA."""
    num_cpus: float = operational(1.0, ge=0)
    """CPUs that each worker reserves in Ray."""
    sharding: Literal["full", "none"] = operational("full")
    """full: every worker holds a share of weights, gradients and optimizer; none: each holds all of them."""
    micro_batch_rows: int = operational(4, ge=1)
    """Packed rows that a worker takes through the model at once."""
    activation_checkpointing: bool = operational(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpoint_every_steps: int = operational(50, ge=1)
    """Optimizer steps between checkpoints within a fit."""
    max_restarts: int = operational(3, ge=0)
    """How often a fit whose worker died, or hangs, is restored from its last checkpoint."""
    collective_timeout_s: float = operational(900.0, ge=1)
    """Of several workers: for how long each waits for the others at any one point, before it says who did not come."""

    def of_iteration(self, iteration: int) -> ImitationConfig:
        """The hyperparameters of one imitation, the first of which is number 1."""
        if iteration == 1 or self.later_learning_rate is None:
            return self
        return self.model_copy(update={"learning_rate": self.later_learning_rate})


class DiscriminationConfig(Section):
    """Finding what the student cannot do yet (paper, section 3.2)."""

    tau: float = 1.0
    """A row is hard where the teacher's score exceeds the student's by at least this."""
    judge_heldout: Literal["every", "ends", "never"] = "every"
    """Judge the student on the held-out instructions: every checkpoint, the base model and the last one, or never."""


class GenerationConfig(Section):
    """New instructions from hard and easy ones (paper, section 3.3)."""

    hard: int = Field(3000, ge=0)
    """New instructions wanted from hard seeds, per iteration."""
    easy: int = Field(3000, ge=0)
    """New instructions wanted from easy seeds, per iteration."""
    max_similarity: float = Field(0.7, ge=0, le=1)
    """A candidate whose ROUGE-L F to any known instruction exceeds this is rejected."""
    max_attempts: float = Field(10.0, ge=1)
    """Requests at most, as a multiple of the rows wanted; then the iteration goes on with what it has."""
    min_words: int = Field(4, ge=1)
    """Shorter candidates are rejected."""

    @model_validator(mode="after")
    def _something(self) -> GenerationConfig:
        if self.hard + self.easy == 0:
            raise ValueError("hard and easy are both 0: nothing would be generated")
        return self


class PlateauConfig(Section):
    """When a student counts as having stopped gaining on the held-out set."""

    rounds: int = Field(1, ge=1)
    """Iterations in a row without such a gain after which the run ends."""
    min_gain: float = Field(0.005, ge=0)
    """The least gain: of the checks' score (0 to 1), or without checks of relative quality, or of loss in nats."""


class StopConfig(Section):
    """Ending before all iterations are done."""

    plateau: PlateauConfig | None = None
    """End when the student has stopped gaining; held-out is then judged before new rows are bought. null: never."""


class BudgetConfig(Section):
    """What the run may spend."""

    usd: float = operational(gt=0)
    """US dollars, all attempts together, with what may have been billed: at the cap nothing more is sent."""


class RunConfig(Section):
    """One distillation run."""

    run_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's name; its folder is storage_path/run_name."""
    storage_path: str = operational("runs")
    """Where runs are kept: a folder, or an object-store URL such as s3://bucket/prefix."""
    journal: str | None = operational(None)
    """Where calls are kept; null for the run's own folder. Runs that share one never buy the same call twice."""
    budget: BudgetConfig | None = operational(None)
    """A hard cap on spending; null for none."""
    seed: int = 0
    """Every random choice derives from it."""
    iterations: int = Field(3, ge=0)
    """Rounds of imitation, discrimination and generation; a last imitation follows. 0: that alone, of the pool."""
    data: DataConfig
    """The user's instructions."""
    endpoints: dict[str, EndpointConfig] = Field(min_length=1)
    """The APIs, by a name of your choice."""
    teacher: TeacherConfig = TeacherConfig()
    """The model to learn from."""
    referee: RefereeConfig = RefereeConfig()
    """The judge."""
    generator: GeneratorConfig = GeneratorConfig()
    """The writer of new instructions."""
    student: StudentConfig
    """The model that learns."""
    imitation: ImitationConfig = ImitationConfig()
    """Fine-tuning."""
    discrimination: DiscriminationConfig = DiscriminationConfig()
    """Judging."""
    generation: GenerationConfig = GenerationConfig()
    """New instructions."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Measuring the student on the held-out instructions without a judge."""
    stop: StopConfig = StopConfig()
    """When to end early."""
    tracking: tuple[TrackingConfig, ...] = operational(())
    """Where the run's numbers go too: TensorBoard, Weights & Biases, MLflow, a class of your own; docs/tracking.md."""
    placement: Literal["handoff", "dedicated"] = operational("handoff")
    """GPUs between stages: handed from engines to training and back, or each their own; on a CPU always dedicated."""
    shard_rows: int | None = Field(None, ge=1)
    """Rows in one shard, the unit of work that is committed; by default 64, and up to 512 in large pools."""
    max_shards_in_flight: int = operational(8, ge=1)
    """The window of shards under way at once."""
    overlap: bool = operational(True)
    """Do side by side what need not wait for one another; false does one thing after the other, for comparison."""
    stall_timeout_s: float | None = operational(1800.0, gt=0)
    """After so many seconds in which nothing moves, restart the actor that does not answer, then end; null: never."""
    max_failure_rate: float = Field(0.2, ge=0, le=1)
    """A stage that quarantines a larger share of its rows stops the run."""

    def rows_per_shard(self, rows: int = 0) -> int:
        """Rows in each shard of a pool of so many: as configured, else for at most `MANY_SHARDS`, if it can be."""
        if self.shard_rows is not None:
            return self.shard_rows
        size = SHARD_ROWS
        while size < MAX_SHARD_ROWS and rows > MANY_SHARDS * size:
            size *= 2
        return size

    @field_validator("storage_path", "journal")
    @classmethod
    def _no_secrets(cls, value: str | None) -> str | None:
        return value if value is None else check_storage(value)

    @model_validator(mode="after")
    def _known_endpoints(self) -> RunConfig:
        for role in ("teacher", "referee", "generator"):
            name = getattr(self, role).endpoint
            if name not in self.endpoints:
                raise ValueError(
                    f"{role}.endpoint: no endpoint is called '{name}' (there is {', '.join(self.endpoints)})"
                )
        for name in self.teacher.fallbacks:
            if name not in self.endpoints:
                raise ValueError(
                    f"teacher.fallbacks: no endpoint is called '{name}' (there is {', '.join(self.endpoints)})"
                )
        if self.stop.plateau is not None and not self.data.heldout:
            raise ValueError(
                "stop.plateau: data.heldout is 0, so there is nothing to see a plateau with; set some aside"
            )
        if self.evaluation.checks and not self.data.heldout:
            raise ValueError("evaluation.checks: data.heldout is 0, so there is nothing to check; set some aside")
        for name in endpoints_in_use(self):
            if self.budget and self.endpoints[name].prices is None and self.endpoints[name].serve is None:
                raise ValueError(f"budget: endpoints.{name}.prices is missing; without prices nothing can be capped")
        return self


def endpoints_in_use(config: RunConfig) -> list[str]:
    """The names of the endpoints that some role calls, fallbacks included."""
    roles = (config.teacher.endpoint, config.referee.endpoint, config.generator.endpoint)
    return sorted({*roles, *config.teacher.fallbacks})


def models_in_use(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The keys and values that name models whose weights the run loads: those it serves, and the student."""
    for name, endpoint in config.endpoints.items():
        if endpoint.serve is not None:
            yield f"endpoints.{name}.serve.model", endpoint.serve.model
    yield "student.model", config.student.model


def splits(config: RunConfig, iteration: int) -> bool:
    """Whether an iteration judges the Cache Pool; the last only imitates."""
    return 1 <= iteration <= config.iterations


def judges_heldout(config: RunConfig, iteration: int, *, last: bool = False) -> bool:
    """Whether an iteration's student is judged on the held-out instructions; `last`: the run ends early with it."""
    at_an_end = last or iteration in (0, config.iterations + 1)
    when = config.discrimination.judge_heldout
    return when == "every" or (when == "ends" and at_an_end)


def answers_heldout(config: RunConfig, iteration: int, *, last: bool = False) -> bool:
    """Whether an iteration's student answers the held-out instructions: to be judged, or for the checks."""
    return bool(config.evaluation.checks) or judges_heldout(config, iteration, last=last)
