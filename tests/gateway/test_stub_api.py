"""The stub plays Lion's roles for every built-in prompt, counts honestly, and runs as a process."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from lion_ray.config import EndpointConfig
from lion_ray.discrimination.scores import in_range, parse_scores
from lion_ray.gateway.calls import Call
from lion_ray.gateway.request import as_sent, wire_body
from lion_ray.prompts.messages import BUILTINS, generator_messages, load_template, referee_messages, teacher_messages
from tests.stub_api import fetch_stats, lion_answer, stub_process

SEEDS = [f"Describe the {thing}." for thing in ("moon", "sea", "law of demand", "sonnet", "bridge")]


def body(messages: Any, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    config = EndpointConfig(model="stub-model", json_schema=True)
    return wire_body(as_sent(Call(messages, max_tokens=256, json_schema=schema), config), config)


@pytest.mark.parametrize("name", BUILTINS["referee"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_referee_gets_two_scores_that_differ_from_row_to_row(name: str, as_json: bool) -> None:
    template = load_template(name, "referee")
    verdicts = []
    for seed in SEEDS:
        messages = referee_messages(template, seed, "One.", "Two.", as_json=as_json)
        verdicts.append(parse_scores(lion_answer(body(messages, template.schema if as_json else None)).text))
    assert all(in_range(pair) for pair in verdicts)
    assert len(set(verdicts)) > 1


@pytest.mark.parametrize("name", BUILTINS["generator"])
def test_a_generator_gets_new_instructions(name: str) -> None:
    template = load_template(name, "generator")
    asked = [body(generator_messages(template, seed)) for seed in SEEDS]
    written = [lion_answer(request).text for request in asked]
    assert written == [lion_answer(request).text for request in asked]
    assert len(set(written)) == len(written)
    assert all(len(text.split()) >= 6 for text in written)


@pytest.mark.parametrize("name", BUILTINS["teacher"])
def test_a_teacher_answers_even_about_scores_and_tasks(name: str) -> None:
    template = load_template(name, "teacher")
    for instruction in (*SEEDS, "Score the answers of Assistant 1 and 2.", "Invent one new task."):
        text = lion_answer(body(teacher_messages(template, instruction))).text
        assert 5 <= len(text.split()) <= 30


def test_as_a_process_it_follows_its_rules_and_counts() -> None:
    rules = [{"fault": "429", "times": 1, "per_body": True, "retry_after": "3"}, {"fault": "500", "ordinals": [3]}]
    with stub_process("--lion", "--rules", json.dumps(rules), "--model", "m") as base_url:
        request = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}
        seen = [post(base_url, request) for _ in range(4)]
        assert seen == [(429, "3"), (200, None), (500, None), (200, None)]
        assert post(base_url, request | {"model": "another"}) == (404, None)
        stats = fetch_stats(base_url)
    assert (stats["total"], stats["completed"], stats["distinct"]) == (5, 2, 2)
    assert list(stats["repeated"].values()) == [2]
    assert stats["statuses"] == {"429": 1, "200": 2, "500": 1, "404": 1}
    assert (stats["in_flight"], stats["max_in_flight"]) == (0, 1)


def post(base_url: str, request: dict[str, Any]) -> tuple[int, str | None]:
    """Status and Retry-After."""
    data = json.dumps(request).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(base_url + "/chat/completions", data)) as response:
            return response.status, response.headers["Retry-After"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Retry-After"]
