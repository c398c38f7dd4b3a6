"""The participants of an evaluation (target, reference and judge), as the command line names them.

A participant is named by a run (its folder, its URL, or its name under ./runs; with ``@N`` for its student after
iteration N, 0 for the base model), a model (a folder, a hub name, or bundled:NAME), an endpoint
(``CONFIG.yaml:NAME``, or ``http://host/v1#MODEL``), or a file of recorded answers (``answers.jsonl``).

Invariants:
- Calls go to endpoints. A model with weights is served on loopback, under a name with a digest of its files, so the
  journal never returns answers of other weights.
- A run's student, teacher and referee are asked as in the run: prompt format, template and sampling.

This module starts and sends nothing; it may download a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from lion_ray.config import Dtype, EndpointConfig, RunConfig, ServeConfig
from lion_ray.core.errors import ConfigError, ModelError
from lion_ray.core.store import RunStore
from lion_ray.gateway.calls import Message
from lion_ray.inference import gpu_build, student_type
from lion_ray.inference.server import MOST_AT_ONCE
from lion_ray.models.checkpoints import Student, described_run, find_run, find_student
from lion_ray.models.resolve import BUNDLED, resolve_model
from lion_ray.models.weights import fingerprint
from lion_ray.prompts.messages import Template, load_template, teacher_messages

MAX_MODEL_LEN = 4096
"""Maximum tokens of prompt plus answer for a model without a run, if the model supports that many."""
TEMPERATURE, TOP_P, MAX_TOKENS = 0.7, 1.0, 1024
"""Default sampling of an endpoint: the paper's for teacher and student."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is served on loopback for the evaluation."""

    config: ServeConfig
    prompt: str
    """As ``student.prompt``."""
    base_dir: Path


@dataclass(frozen=True, slots=True)
class Participant:
    """A model or a file that gives answers or verdicts."""

    label: str
    """A short name for files and tables."""
    endpoint: str = ""
    """Its endpoint's name."""
    config: EndpointConfig | None = None
    """None if the answers are recorded."""
    base_dir: Path = field(default_factory=Path)
    recorded: Path | None = None
    served: Served | None = None
    template: Template | None = None
    """The prompt template for an answer or a verdict; None sends only the question."""
    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    max_tokens: int = MAX_TOKENS
    retries: int = 2
    """Retries of a judge's unreadable verdict."""
    run: RunStore | None = None
    """The run, if the target is a run's student."""
    run_config: RunConfig | None = None
    iteration: int | None = None

    def messages(self, text: str) -> tuple[Message, ...]:
        """The prompt for an answer."""
        if self.template is not None and self.template.kind == "teacher":
            return teacher_messages(self.template, text)
        return ({"role": "user", "content": text},)


@dataclass(frozen=True, slots=True)
class ParticipantOptions:
    """Command-line options of a participant."""

    role: str
    """TARGET, --reference or --judge, for errors."""
    iteration: int | None = None
    model: str | None = None
    api_key_env: str | None = None
    prompt: str | None = None
    """The prompt format of a model without a run."""
    dtype: Dtype | None = None
    temperature: float | None = None
    max_tokens: int | None = None


def find_participant(named: str, options: ParticipantOptions, say: Callable[[str], None]) -> Participant:
    """The participant called `named`.

    Raises:
        ConfigError: the name is unknown, or an option does not apply.
        DataError, ModelError: the named thing cannot be used or obtained.
    """
    if re.match(r"https?://", named):
        participant = _address(named, options)
    elif found := re.fullmatch(r"(.+\.ya?ml):([^/:]+)", named):
        participant = _configured(Path(found[1]), found[2])
    elif named.endswith((".jsonl", ".jsonl.gz")):
        if not Path(named).is_file():
            raise ConfigError(f"{options.role} {named}: no such file")
        return Participant(Path(named).name.split(".")[0], recorded=Path(named))
    elif not named.startswith(BUNDLED) and (found_run := _run(named, options.iteration)) is not None:
        participant = _student(*found_run, say)
    elif named.startswith(BUNDLED) or Path(named).is_dir() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", named):
        participant = _model(named, options, say)
    else:
        raise ConfigError(
            f"{options.role} {named}: there is no such run, model folder or file; give a run, a model's "
            f"folder, hub name or {BUNDLED}NAME, CONFIG.yaml:ENDPOINT, http://host/v1#MODEL, or answers.jsonl"
        )
    if options.iteration is not None and participant.run is None:
        raise ConfigError(f"{options.role} {named}: --iteration is only for runs")
    if (
        options.role == "TARGET"
        and (options.prompt or options.dtype)
        and (participant.run or participant.served is None)
    ):
        raise ConfigError(f"{named}: --prompt and --dtype are only for models, not for runs or endpoints")
    return replace(
        participant,
        temperature=participant.temperature if options.temperature is None else options.temperature,
        max_tokens=options.max_tokens or participant.max_tokens,
    )


def teacher_of(store: RunStore) -> Participant:
    """A run's teacher, with the run's template and sampling."""
    config, base_dir = described_run(store)
    teacher = config.teacher
    return Participant(
        teacher.endpoint,
        endpoint=teacher.endpoint,
        config=config.endpoints[teacher.endpoint],
        base_dir=base_dir,
        template=load_template(teacher.prompt, "teacher", base_dir),
        temperature=teacher.temperature,
        top_p=teacher.top_p,
        max_tokens=teacher.max_tokens,
    )


def referee_of(store: RunStore) -> Participant:
    """A run's referee, with the run's template and sampling."""
    config, base_dir = described_run(store)
    referee = config.referee
    return Participant(
        referee.endpoint,
        endpoint=referee.endpoint,
        config=config.endpoints[referee.endpoint],
        base_dir=base_dir,
        template=load_template(referee.prompt, "referee", base_dir),
        temperature=referee.temperature,
        max_tokens=referee.max_tokens,
        retries=referee.parse_retries,
    )


def as_judge(participant: Participant, prompt: str) -> Participant:
    """The participant as a judge, with the referee's template `prompt` and the paper's sampling.

    Raises:
        ConfigError: it has only recorded answers, or there is no such template.
    """
    if participant.config is None:
        raise ConfigError("--judge: recorded answers cannot judge; name an endpoint, a run or a model")
    template = load_template(prompt, "referee")
    return replace(participant, template=template, temperature=0.2, top_p=1.0, max_tokens=512)


def _address(named: str, options: ParticipantOptions) -> Participant:
    address, _, model = named.partition("#")
    model = model or options.model or ""
    if not model:
        raise ConfigError(f"{options.role} {address}: name its model: {address}#MODEL, or --model MODEL")
    if options.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", options.api_key_env):
        raise ConfigError("--api-key-env: give the name of an environment variable, never the key itself")
    config = EndpointConfig(model=model, base_url=address, api_key_env=options.api_key_env)
    return Participant(_plain(model), endpoint=_plain(model), config=config)


def _configured(path: Path, name: str) -> Participant:
    from lion_ray.config.file import load_config

    loaded = load_config(path)
    return Participant(name, endpoint=name, config=loaded.endpoint(name), base_dir=loaded.base_dir)


def _run(named: str, iteration: int | None) -> tuple[RunStore, int | None] | None:
    """The run, and the iteration of its student."""
    if (store := find_run(named)) is not None:
        return store, iteration
    found = re.fullmatch(r"(.+)@(\d+)", named)
    store = find_run(found[1]) if found else None
    return (store, int(found[2])) if found and store is not None else None


def _student(store: RunStore, iteration: int | None, say: Callable[[str], None]) -> Participant:
    from lion_ray.inference.serving import serving

    student: Student = find_student(store, iteration, say)
    own = student.config.student
    participant = _serve(student.config.run_name, serving(student), own.prompt, student.base_dir, say)
    if own.top_k is not None:
        assert participant.config is not None
        config = participant.config.model_copy(update={"extra_body": {"top_k": own.top_k}})  # vLLM's own field
        participant = replace(participant, config=config)
    return replace(
        participant,
        label=student.version,
        temperature=own.temperature,
        top_p=own.top_p,
        max_tokens=own.max_tokens,
        run=store,
        run_config=student.config,
        iteration=student.iteration,
    )


def _model(named: str, options: ParticipantOptions, say: Callable[[str], None]) -> Participant:
    folder = resolve_model(named, base_dir=None, progress=say)
    config = ServeConfig(
        model=str(folder),
        dtype=student_type(options.dtype or "auto"),
        max_model_len=min(MAX_MODEL_LEN, _longest(folder)),
        num_gpus=1 if gpu_build() else 0,
        enforce_eager=True,
        max_num_seqs=MOST_AT_ONCE,
    )
    prompt = options.prompt or _default_prompt(folder)
    if prompt == "chat" and _default_prompt(folder) != "chat":
        raise ModelError(f"{named}: the model has no chat template: use --prompt instruction, or a .txt file")
    label = _plain(named.removeprefix(BUNDLED).rstrip("/").rpartition("/")[2])
    return _serve(label, config, prompt, Path(), say)


def _serve(name: str, config: ServeConfig, prompt: str, base_dir: Path, say: Callable[[str], None]) -> Participant:
    from lion_ray.models.prompter import frame_template

    frame = frame_template(config.model, prompt, base_dir) or prompt
    say(f"{name}: hashing its files, so that its answers can be found in the journal")
    model = f"{name}-{fingerprint(Path(config.model), config.dtype, frame)}"
    endpoint = EndpointConfig(model=model, api_key_env=None, max_concurrency=config.max_num_seqs or MOST_AT_ONCE)
    served = Served(config, prompt, base_dir)
    return Participant(name, endpoint=name, config=endpoint, base_dir=base_dir, served=served)


def _default_prompt(folder: Path) -> str:
    """`chat` if the model has a chat template, else the paper's prompt format."""
    if (folder / "chat_template.jinja").is_file() or "chat_template" in _json(folder / "tokenizer_config.json"):
        return "chat"
    return "instruction"


def _longest(folder: Path) -> int:
    config = _json(folder / "config.json")
    longest = config.get("max_position_embeddings", config.get("text_config", {}).get("max_position_embeddings"))
    return longest if isinstance(longest, int) else MAX_MODEL_LEN


def _json(path: Path) -> dict:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(name: str) -> str:
    """A name that is valid in file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
