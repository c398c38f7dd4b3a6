"""The configuration of a run, except its endpoints: data, roles, the student, its training, and execution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lion_ray.config.checks import EvaluationConfig
from lion_ray.config.endpoints import EndpointConfig
from lion_ray.config.imitation import ImitationConfig
from lion_ray.config.on_policy import OnPolicyConfig, RubricatorConfig, RubricRewardConfig, VerifierConfig
from lion_ray.config.plugins import (
    PromptSourceConfig,
    TemplatePromptConfig,
)
from lion_ray.config.referee import RefereeConfig
from lion_ray.config.section import Dtype, Mode, Section, by_machine, operational
from lion_ray.config.tracking import TrackingConfig
from lion_ray.core.addresses import check_storage

SHARD_ROWS, MAX_SHARD_ROWS, MANY_SHARDS = 64, 512, 256
"""Without `shard_rows`: rows per shard in a small pool, in a very large one, and the number of shards to stay below."""


class DataConfig(Section):
    """The user's instructions."""

    pool: str
    """The instructions: a file (.jsonl, .json, .csv, .txt, .parquet; docs/data.md), or hf:NAME[:CONFIG][:SPLIT]."""
    heldout: str | int = 0
    """Held-out instructions, never trained on: a file like the pool's, or how many rows of the pool to hold out."""
    limit: int | None = Field(None, ge=1)
    """Use only this many of the pool's first instructions; null: all."""
    on_bad_row: Literal["stop", "quarantine"] = "stop"
    """A malformed row stops the run with its file and line, or goes to a quarantine file."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation sets, as files or folders: instructions similar to one of their questions are never trained on."""
    licence: str | None = operational(None)
    """The instructions' licence, such as Apache-2.0 or CC-BY-4.0, for an export's cards; null if unknown."""
    source: str | None = operational(None)
    """The origin of the instructions, in your words, for an export's cards."""


class TeacherConfig(Section):
    """The model to learn from (paper, section 3.1)."""

    endpoint: str = "default"
    """The name of the endpoint that answers."""
    fallbacks: tuple[str, ...] = operational(())
    """Endpoints to use, in this order, while that one is down or refuses; each answer records its endpoint."""
    mode: Mode = operational("live")
    """live calls, or batch: the endpoint's Batch API, cheaper, within a day."""
    prompt: str = "answer"
    """The template: a built-in name, or a .yaml file."""
    source: PromptSourceConfig = TemplatePromptConfig()
    """How an instruction becomes a prompt: with the template (`prompt`), or by your own class."""
    temperature: float = Field(0.7, ge=0, le=2)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling's mass."""
    max_tokens: int = Field(1024, ge=1)
    """The longest answer, in the teacher's tokens."""


class GeneratorConfig(Section):
    """The writer of new instructions (paper, section 3.3)."""

    endpoint: str = "default"
    """The name of the endpoint that writes."""
    mode: Mode = operational("live")
    """live calls, or batch: the endpoint's Batch API, cheaper, within a day."""
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
    min_tokens: int = Field(32, ge=1)
    """The lowest length limit, in tokens, so that even a short seed can yield a whole sentence."""


class CanaryConfig(Section):
    """How far an engine's greedy answers may differ from the trainer's before its weights count as wrong.

    The defaults are some times the largest differences seen between correct implementations; another GPU or another
    vLLM may add up in another order, and differ more.
    """

    tie: float | None = operational(None, gt=0)
    """Lead (in logits) below which rounding may swap two tokens; null: float32 0.05, float16 0.1, bfloat16 0.5."""
    mean: float | None = operational(None, gt=0)
    """Largest mean difference of log-probabilities, in nats; null: float32 0.02, float16 0.05, bfloat16 0.2."""


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
    top_k: int | None = Field(None, ge=1)
    """Sample among this many of the likeliest tokens; null: among all."""
    max_tokens: int = Field(1024, ge=1)
    """The longest answer, in the student's tokens."""
    dtype: Dtype = by_machine()
    """The type of the engines' weights (checkpoints are float32); auto: float16 on a GPU, on a CPU the fastest type."""
    max_model_len: int = Field(2048, ge=16)
    """The longest prompt plus answer, in tokens; a prompt that leaves no room is quarantined."""
    min_engines: int = operational(1, ge=0)
    """Engines that stay while a checkpoint is in use; with 0 the last idle one ends too."""
    max_engines: int | None = operational(None, ge=1)
    """The most engines at once, if there is enough work; null: min_engines, at least 1."""
    idle_timeout_s: float = operational(60.0, ge=0)
    """Idle timeout of an engine beyond min_engines, in seconds; then it ends."""
    tensor_parallel_size: int = operational(1, ge=1)
    """GPUs for each engine."""
    use_gpu: bool | None = operational(None)
    """Run engines on GPUs; null: if the installed vLLM is the GPU build."""
    num_cpus: float = operational(1.0, ge=0)
    """CPUs that each engine reserves in Ray."""
    max_num_seqs: int | None = operational(None, ge=1)
    """Answers that an engine generates at once; null: 64 on a CPU, on a GPU as many as its memory holds (8 to 256)."""
    gpu_memory_utilization: float = operational(0.9, gt=0, le=1)
    """Share of a GPU's memory an engine may take."""
    kv_cache_gib: float = operational(1.0, gt=0)
    """Memory for an engine's key-value cache on a CPU, in GiB."""
    enforce_eager: bool | None = operational(None)
    """Skip compilation: starts sooner, answers slower; null: only on a CPU, where compiling takes minutes."""
    start_timeout_s: float = operational(900.0, gt=0)
    """Timeout of an engine's start once it has its resources, in seconds."""
    refresh: Literal["auto", "disk", "memory"] = operational("auto")
    """Where running engines take new weights from: the checkpoint, or Ray's memory; auto: memory with a bucket."""
    canary: CanaryConfig = CanaryConfig()
    """The check that an engine serves the trainer's weights, for machines whose arithmetic needs wider bounds."""

    @property
    def most_engines(self) -> int:
        """The largest number of engines."""
        return self.max_engines or max(1, self.min_engines)

    @model_validator(mode="after")
    def _engines_in_order(self) -> StudentConfig:
        if self.max_engines is not None and self.max_engines < self.min_engines:
            raise ValueError(f"max_engines ({self.max_engines}) is less than min_engines ({self.min_engines})")
        return self


class DiscriminationConfig(Section):
    """Finding what the student cannot do yet (paper, section 3.2)."""

    tau: float = 1.0
    """A row is hard if the teacher's score exceeds the student's by at least this."""
    judge_heldout: Literal["every", "ends", "never"] = "every"
    """Judge on the held-out instructions: every checkpoint, only the base model and the last checkpoint, or none."""


class GenerationConfig(Section):
    """New instructions from hard and easy ones (paper, section 3.3)."""

    hard: int = Field(3000, ge=0)
    """New instructions wanted from hard seeds, per iteration."""
    easy: int = Field(3000, ge=0)
    """New instructions wanted from easy seeds, per iteration."""
    max_similarity: float = Field(0.7, ge=0, le=1)
    """A candidate whose ROUGE-L F to any known instruction exceeds this is rejected."""
    max_attempts: float = Field(10.0, ge=1)
    """The most requests, as a multiple of the rows wanted; then the iteration continues with the rows it has."""
    min_words: int = Field(4, ge=1)
    """Shorter candidates are rejected."""

    @model_validator(mode="after")
    def _something(self) -> GenerationConfig:
        if self.hard + self.easy == 0:
            raise ValueError("hard and easy are both 0: nothing would be generated")
        return self


class PlateauConfig(Section):
    """When early stopping considers the student's gain on the held-out set exhausted."""

    rounds: int = Field(1, ge=1)
    """Patience: the run ends after this many consecutive iterations without such a gain."""
    min_gain: float = Field(0.005, ge=0)
    """The smallest gain that counts: in the checks' score (0 to 1), else relative quality, else loss in nats."""


class StopConfig(Section):
    """Early stopping."""

    plateau: PlateauConfig | None = None
    """Stop when the student no longer gains; held-out rows are then judged before new rows are bought. null: never."""


class BudgetConfig(Section):
    """The run's budget."""

    usd: float = operational(gt=0)
    """US dollars for all attempts together, including calls that may have been billed; at the cap no call is sent."""


class RunConfig(Section):
    """One distillation run."""

    run_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's name; its folder is storage_path/run_name."""
    storage_path: str = operational("runs")
    """The parent folder of runs, or an object-store URL such as s3://bucket/prefix."""
    journal: str | None = operational(None)
    """The journal of calls; null: in the run's folder. Runs that share a journal never buy the same call twice."""
    budget: BudgetConfig | None = operational(None)
    """A hard cap on spending; null: none."""
    seed: int = 0
    """The seed of every random choice."""
    iterations: int = Field(3, ge=0)
    """Rounds of imitation, discrimination and generation; a final imitation follows. 0: imitation of the pool alone."""
    data: DataConfig
    """The user's instructions."""
    endpoints: dict[str, EndpointConfig] = Field(min_length=1)
    """The APIs, each under a name that you choose."""
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
    on_policy: OnPolicyConfig | None = None
    """After each imitation, rounds in which the student learns from its own answers; null: none."""
    rubricator: RubricatorConfig = RubricatorConfig()
    """The writer of rubrics for `on_policy`."""
    verifier: VerifierConfig = VerifierConfig()
    """The judge of the student's answers for `on_policy`."""
    discrimination: DiscriminationConfig = DiscriminationConfig()
    """Judging."""
    generation: GenerationConfig = GenerationConfig()
    """New instructions."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Measuring the student on the held-out instructions without a judge."""
    stop: StopConfig = StopConfig()
    """Early stopping."""
    tracking: tuple[TrackingConfig, ...] = operational(())
    """Trackers that receive the run's metrics: TensorBoard, Weights & Biases, MLflow or your own; docs/tracking.md."""
    placement: Literal["handoff", "dedicated"] = operational("handoff")
    """GPUs: engines and training hand them to each other, or each has its own; on a CPU always dedicated."""
    nodes_timeout_s: float = operational(600.0, ge=0)
    """How long a run waits at its start for nodes that a cluster without an autoscaler lacks, in seconds."""
    shard_rows: int | None = Field(None, ge=1)
    """Rows in one shard, the unit of work that is committed; null: 64, and up to 512 in large pools."""
    max_shards_in_flight: int = operational(8, ge=1)
    """The most shards in flight at once."""
    overlap: bool = operational(True)
    """Run independent stages concurrently; false: one after another, for comparison."""
    stall_timeout_s: float | None = operational(1800.0, gt=0)
    """After this many seconds without progress, restart the actor that does not answer, then stop; null: never."""
    max_failure_rate: float = Field(0.2, ge=0, le=1)
    """The run stops if a stage quarantines a larger share of its rows."""

    def rows_per_shard(self, rows: int = 0) -> int:
        """Rows per shard of a pool of `rows`: as configured, else 64 to 512, for `MANY_SHARDS` shards or fewer."""
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
        for role in paid_roles(self):
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
        if shared := _judges_itself(self):
            raise ValueError(
                f"on_policy: {shared} both rewards the student's answers (verifier) and judges the held-out ones "
                "(referee), so it would measure itself; give verifier.endpoint another model, set "
                "discrimination.judge_heldout: never and use evaluation.checks, or on_policy.allow_same_judge: true"
            )
        if self.stop.plateau is not None and not self.data.heldout:
            raise ValueError(
                "stop.plateau: data.heldout is 0, so there is nothing to measure a plateau with; hold some rows out"
            )
        if self.evaluation.checks and not self.data.heldout:
            raise ValueError("evaluation.checks: data.heldout is 0, so there is nothing to check; hold some rows out")
        for name in endpoints_in_use(self):
            if self.budget and self.endpoints[name].prices is None and self.endpoints[name].serve is None:
                raise ValueError(f"budget: endpoints.{name}.prices is missing; a budget needs prices, so add them")
        return self


def paid_roles(config: RunConfig) -> tuple[str, ...]:
    """The roles that call an endpoint: the names of their sections."""
    rubrics = config.on_policy is not None and isinstance(config.on_policy.reward, RubricRewardConfig)
    return ("teacher", "referee", "generator", *(("rubricator", "verifier") if rubrics else ()))


def endpoints_in_use(config: RunConfig) -> list[str]:
    """The names of the endpoints that any role calls, including fallbacks."""
    return sorted({*(getattr(config, role).endpoint for role in paid_roles(config)), *config.teacher.fallbacks})


def _judges_itself(config: RunConfig) -> str:
    """The model that both rewards answers and judges the held-out ones, if that is not allowed; else ""."""
    if "verifier" not in paid_roles(config) or config.discrimination.judge_heldout == "never":
        return ""
    assert config.on_policy is not None
    if config.on_policy.allow_same_judge or not config.data.heldout:
        return ""
    names = (config.verifier.endpoint, config.referee.endpoint)
    rewards, judges = (_model_of(config.endpoints[name]) for name in names)
    return rewards if rewards == judges else ""


def _model_of(endpoint: EndpointConfig) -> str:
    return endpoint.model if endpoint.serve is None else endpoint.serve.model


def models_in_use(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The keys and values that name models whose weights the run loads: served models, and the student."""
    for name, endpoint in config.endpoints.items():
        if endpoint.serve is not None:
            yield f"endpoints.{name}.serve.model", endpoint.serve.model
    yield "student.model", config.student.model


def splits(config: RunConfig, iteration: int) -> bool:
    """Whether an iteration judges the Cache Pool; the final imitation does not."""
    return 1 <= iteration <= config.iterations


def judges_heldout(config: RunConfig, iteration: int, *, last: bool = False) -> bool:
    """Whether an iteration's student is judged on the held-out instructions; `last`: the run stops early after it."""
    at_an_end = last or iteration in (0, config.iterations + 1)
    when = config.discrimination.judge_heldout
    return when == "every" or (when == "ends" and at_an_end)


def answers_heldout(config: RunConfig, iteration: int, *, last: bool = False) -> bool:
    """Whether an iteration's student answers the held-out instructions, for the judge or for the checks."""
    return bool(config.evaluation.checks) or judges_heldout(config, iteration, last=last)
