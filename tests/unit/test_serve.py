"""Serving a student: who may reach it, which checkpoint it is, and how it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2.sandbox import SandboxedEnvironment

from lion_ray.core.addresses import is_loopback
from lion_ray.core.errors import ConfigError
from lion_ray.core.store import RunStore
from lion_ray.inference.serving import api_key
from lion_ray.models.checkpoints import find_student
from lion_ray.models.prompter import Prompter, frame_template
from tests.tiny import BOS, make_tiny_tokenizer

CONFIG = {
    "run_name": "tiny",
    "iterations": 1,
    "data": {"pool": "pool.jsonl"},
    "endpoints": {"default": {"model": "m"}},
    "student": {"model": "none"},
}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("example.org", False),
    ],
)
def test_who_can_reach_a_host(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_others_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_key("127.0.0.1", None) is None
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 can be reached from other machines"):
        api_key("192.0.2.1", None)
    monkeypatch.delenv("SERVE_KEY", raising=False)
    with pytest.raises(ConfigError, match="--api-key-env SERVE_KEY: the variable is not set"):
        api_key("192.0.2.1", "SERVE_KEY")
    monkeypatch.setenv("SERVE_KEY", "sk-planted")
    assert api_key("192.0.2.1", "SERVE_KEY") == "sk-planted"


def test_the_last_checkpoint_that_is_there(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.claim()
    store.write_json("run.json", {"config": CONFIG, "base_dir": str(tmp_path)})
    with pytest.raises(ConfigError, match="no checkpoint of any iteration yet"):
        find_student(store)
    store.stage("iteration-1/checkpoint").commit({})
    assert find_student(store).version == "iteration-1"
    assert find_student(store).folder == tmp_path / "iteration-1" / "checkpoint" / "model"
    store.stage("iteration-2/checkpoint").commit({})
    assert find_student(store).version == "iteration-2"
    assert find_student(store, 1).version == "iteration-1"
    with pytest.raises(ConfigError, match="no checkpoint of iteration 3 yet"):
        find_student(store, 3)


def test_a_run_of_another_version(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    store.write_json("run.json", {"config": CONFIG | {"student": {"model": "m", "engines": 1}}, "base_dir": "."})
    with pytest.raises(
        ConfigError, match=r"run\.json: another version of lion-ray wrote its configuration .*student\.engines"
    ):
        find_student(store)


def test_the_student_as_it_came(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    make_tiny_tokenizer().save_pretrained(tmp_path / "came")
    (tmp_path / "came" / "config.json").write_text("{}")
    (tmp_path / "came" / "model.safetensors").write_text("")
    store.write_json("run.json", {"config": CONFIG | {"student": {"model": "came"}}, "base_dir": str(tmp_path)})
    found = find_student(store, 0)
    assert (found.folder, found.version, found.iteration) == (tmp_path / "came", "base", 0)


def test_a_server_asks_as_the_student_was_trained(tmp_path: Path) -> None:
    make_tiny_tokenizer(chat_template=False).save_pretrained(tmp_path)
    (tmp_path / "own.txt").write_text('{{ braces }} "quoted" ü\n{instruction}\nAnswer:')
    assert frame_template(tmp_path, "chat") is None
    for prompt in ("instruction", "own.txt"):
        template = frame_template(tmp_path, prompt, tmp_path)
        assert template is not None
        said = {"role": "user", "content": "Describe {{ an }} item."}
        rendered = SandboxedEnvironment().from_string(template).render(messages=[said])
        assert rendered.startswith(BOS)
        prompter = Prompter.load(tmp_path, prompt, tmp_path)
        tokens = prompter.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert prompter.tokenizer.decode(tokens) == prompter.tokenizer.decode(prompter.prompt_ids(said["content"]))
