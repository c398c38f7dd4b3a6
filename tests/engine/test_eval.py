"""Lettered questions asked of a model folder: real vLLM on loopback, held against transformers."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lion_ray.core.process_guard import command_line, descendants, start_time
from lion_ray.core.progress import Progress
from lion_ray.evaluation.benchmarks.protocol import Question
from lion_ray.evaluation.benchmarks.run import ChoicePlan, ask_choices, choose, likeliest_letter
from lion_ray.evaluation.participants import ParticipantOptions, find_participant
from lion_ray.evaluation.session import place_of, session
from lion_ray.gateway.calls import Completion, TokenChoice
from lion_ray.models.prompter import Prompter
from tests.tiny import make_tiny_model

COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "teal", "plum", "rust")
QUESTIONS = [
    Question("bbh", "reasoning_about_colored_objects", n, f"What colour is item {n}?", COLOURS, "ABCDEFGHIJKL"[n % 12])
    for n in range(24)
]


def expected(folder: Path, questions: list[Question]) -> Iterator[str | None]:
    """The likeliest letter of each question by the model itself, asked with the ids that training uses."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompter = Prompter.load(folder, "chat")
    for question in questions:
        with torch.no_grad():
            logits = model(torch.tensor([prompter.prompt_ids(question.prompt())])).logits[0, -1]
        values, tokens = logits.log_softmax(-1).topk(20)
        pairs = [(str(prompter.tokenizer.decode(one)), float(value)) for one, value in zip(tokens, values, strict=True)]
        completion = Completion("", "", "", "", "", 0, 0, logprobs=(TokenChoice(0, "", tuple(pairs)),))
        yield likeliest_letter(completion, question.letters)


async def test_a_model_folder_is_asked_as_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_tiny_model(tmp_path / "tiny", seed=4, initializer_range=0.5)  # says letters
    said = io.StringIO()
    progress = Progress(said)
    target = find_participant(str(folder), ParticipantOptions("TARGET"), progress.say)
    async with session(place_of(target, None, None), "both", progress, [target], None) as opened:
        endpoint = await opened.endpoint(target)
        by_logprobs = await ask_choices(endpoint, QUESTIONS, "logprobs", 64, "both")
        by_text = await ask_choices(endpoint, QUESTIONS, "published", 8, "both")
        again = await ask_choices(endpoint, QUESTIONS, "logprobs", 64, "both")
        assert all(isinstance(one, Completion) and one.replayed for one in again)
        servers = [pid for pid in descendants(os.getpid()) if b"api_server" in command_line(pid)]
        assert servers
    assert not any(map(start_time, servers)), "a server outlived its evaluation"
    letters = [likeliest_letter(one, QUESTIONS[0].letters) for one in by_logprobs if isinstance(one, Completion)]
    assert letters == list(expected(folder, QUESTIONS))
    assert len(set(letters)) > 2, "or the comparison would say nothing"
    assert all(isinstance(one, Completion) and one.completion_tokens <= 8 for one in by_text)
    assert re.findall(r"starting a server for tiny-\w+ at http://(127\.0\.0\.1):", said.getvalue()) == ["127.0.0.1"]
    # The journal knows these weights' answers: what follows starts nothing.
    plan = ChoicePlan("bbh", QUESTIONS, target, "logprobs")
    chosen = await choose(plan, place_of(target, None, None), progress)
    assert said.getvalue().count("starting a server") == 1
    right = sum(letter == one.answer for letter, one in zip(letters, QUESTIONS, strict=True))
    assert chosen.score.mean == right / len(QUESTIONS)
    assert chosen.json["tasks"][0]["unparsed"] == letters.count(None)
