"""Who takes part in an evaluation: what each name means, and what is said of names that mean nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lion_ray.core.errors import ConfigError, ModelError
from lion_ray.core.store import RunStore
from lion_ray.evaluation.participants import (
    Participant,
    ParticipantOptions,
    as_judge,
    find_participant,
    referee_of,
    teacher_of,
)
from lion_ray.evaluation.session import place_of
from lion_ray.models.weights import fingerprint
from tests.tiny import make_tiny_tokenizer

CONFIG = """
run_name: mine
iterations: 1
data: {pool: pool.jsonl}
endpoints:
  api: {model: big, base_url: "http://192.0.2.1/v1", prices: {input: 1, output: 2}}
  small: {model: little, base_url: "http://192.0.2.2/v1"}
teacher: {endpoint: api, temperature: 0.3, max_tokens: 99}
generator: {endpoint: api}
referee: {endpoint: small, prompt: scores, max_tokens: 16, parse_retries: 1}
student: {model: none, temperature: 0.5, max_tokens: 77, max_model_len: 128, prompt: instruction}
"""


def quiet(_: str) -> None:
    """Where nobody listens."""


def find(named: object, **options: Any) -> Participant:
    return find_participant(str(named), ParticipantOptions("TARGET", **options), quiet)


def weights(folder: Path, text: str, *, chat_template: bool = True) -> Path:
    """A folder that looks like a model; nothing here loads its weights."""
    folder.mkdir(parents=True)
    make_tiny_tokenizer(chat_template=chat_template).save_pretrained(folder)
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    (folder / "model.safetensors").write_text(text)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return tmp_path / "mine.yaml"


@pytest.fixture
def run(tmp_path: Path, config: Path) -> RunStore:
    from lion_ray.config.file import load_config

    store = RunStore(str(tmp_path / "run"))
    store.claim()
    described = load_config(config).config.model_dump(mode="json")
    store.write_json("run.json", {"config": described, "base_dir": str(tmp_path)})
    for number in (1, 2):
        weights(Path(store.path(f"iteration-{number}/checkpoint/model")), f"weights {number}")
        store.stage(f"iteration-{number}/checkpoint").commit({})
    return store


def test_an_address(tmp_path: Path) -> None:
    participant = find("http://192.0.2.1/v1#org/big:8b", api_key_env="MY_KEY")
    assert participant.config is not None
    assert (participant.config.model, participant.config.base_url) == ("org/big:8b", "http://192.0.2.1/v1")
    assert participant.config.api_key_env == "MY_KEY"
    assert (participant.label, participant.temperature, participant.max_tokens) == ("org-big-8b", 0.7, 1024)
    assert find("http://192.0.2.1/v1", model="big").config == find("http://192.0.2.1/v1#big").config
    with pytest.raises(ConfigError, match="name its model"):
        find("http://192.0.2.1/v1")
    with pytest.raises(ConfigError) as caught:
        find("http://192.0.2.1/v1#big", api_key_env="sk-planted-key")
    assert "sk-planted" not in str(caught.value)


def test_an_endpoint_of_a_configuration(config: Path) -> None:
    participant = find(f"{config}:api", temperature=0.0, max_tokens=5)
    assert participant.config is not None
    assert (participant.config.model, participant.temperature, participant.max_tokens) == ("big", 0.0, 5)
    assert participant.base_dir == config.parent
    with pytest.raises(ConfigError, match=r"no endpoint is called 'none' \(there is api, small\)"):
        find(f"{config}:none")


def test_a_run_is_asked_as_it_was_trained(run: RunStore) -> None:
    participant = find(run.root)
    assert participant.served is not None
    assert participant.config is not None
    assert (participant.label, participant.iteration) == ("iteration-2", 2)
    assert (participant.temperature, participant.max_tokens) == (0.5, 77)
    assert (participant.served.prompt, participant.served.config.max_model_len) == ("instruction", 128)
    assert participant.messages("Why?") == ({"role": "user", "content": "Why?"},)
    first = find(f"{run.root}@1")
    assert first.label == "iteration-1" == find(run.root, iteration=1).label
    assert first.config is not None
    assert first.config.model != participant.config.model, "other weights, another name, other keys in the journal"
    with pytest.raises(ConfigError, match="no checkpoint of iteration 3"):
        find(run.root, iteration=3)


def test_a_runs_teacher_and_referee(run: RunStore) -> None:
    teacher, referee = teacher_of(run), referee_of(run)
    assert (teacher.endpoint, teacher.temperature, teacher.max_tokens) == ("api", 0.3, 99)
    assert teacher.messages("Why?")[-1]["content"].count("Why?") == 1
    assert referee.template is not None
    assert (referee.template.name, referee.max_tokens, referee.retries) == ("scores", 16, 1)
    judge = as_judge(referee, "explain")
    assert judge.template is not None
    assert (judge.template.name, judge.max_tokens, judge.temperature) == ("explain", 512, 0.2)


def test_where_results_and_calls_are_kept(run: RunStore, tmp_path: Path) -> None:
    of_run = place_of(find(run.root), None, None)
    assert of_run.store.path(of_run.name("x", "json")) == run.path("evaluations/x.json")
    assert (of_run.journal, of_run.account) == (run.path("journal"), "mine/eval")
    elsewhere = place_of(find(run.root), tmp_path / "out", None)
    assert elsewhere.store.path(elsewhere.name("x", "json")) == str(tmp_path / "out" / "x.json")
    assert elsewhere.journal == run.path("journal"), "the run's calls stay together"
    other = place_of(find("http://192.0.2.1/v1#big"), None, None)
    assert (other.journal, other.account) == ("evaluations/journal", "big/eval")


def test_a_model_folder(tmp_path: Path) -> None:
    participant = find(weights(tmp_path / "tiny", "w"))
    assert participant.served is not None
    assert (participant.label, participant.served.prompt, participant.served.config.max_model_len) == (
        "tiny",
        "chat",
        512,
    )
    without = find(weights(tmp_path / "bare", "w", chat_template=False), prompt="instruction")
    assert without.served is not None
    assert without.served.prompt == "instruction" == find(tmp_path / "bare").served.prompt  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="no chat template"):
        find(tmp_path / "bare", prompt="chat")
    with pytest.raises(ConfigError, match="--iteration is only for runs"):
        find(tmp_path / "tiny", iteration=1)


def test_a_fingerprint_is_of_what_decides_the_answers(tmp_path: Path) -> None:
    folder = weights(tmp_path / "tiny", "w")
    before = fingerprint(folder, "float32", "chat")
    (folder / "training.json").write_text(json.dumps({"steps": 3}))
    assert fingerprint(folder, "float32", "chat") == before
    assert fingerprint(folder, "float16", "chat") != before
    assert fingerprint(folder, "float32", "instruction") != before
    (folder / "model.safetensors").write_text("v")
    assert fingerprint(folder, "float32", "chat") != before


def test_nobody(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TARGET nobody: there is no such run, model folder or file"):
        find("nobody")
    with pytest.raises(ConfigError, match="no such file"):
        find(tmp_path / "answers.jsonl")
    (tmp_path / "answers.jsonl").write_text("")
    recorded = find(tmp_path / "answers.jsonl")
    assert (recorded.label, recorded.config) == ("answers", None)
    with pytest.raises(ConfigError, match="recorded answers cannot judge"):
        as_judge(recorded, "explain")
