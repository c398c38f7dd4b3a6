"""The check of a GPU, on a CPU with the smallest models: its numbers are right, and a wrong one is told."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu_check import __main__ as check
from bench.gpu_check.numbers import Machine, at_most
from lion_ray.imitation.training import attention

TINY = Machine(torch.device("cpu"), tiny=True)


def numbers(name, capsys):
    """What a section reports in this process."""
    module, _, function = check.SECTIONS[name][0].partition(":")
    getattr(importlib.import_module(module), function)(TINY)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("section", "known"),
    [
        ("kernels", "varlen: distance of gradients"),
        ("losses", "preference: distance of gradients in chunks"),
        ("sharded", "fully_shard, lora: relative difference of a step's loss"),
        ("fits", "a resumed fit: distance of its weights"),
        ("qwen3-0.6b", "preference: tokens/s"),
        ("llama-1b", "compiled: tokens/s"),
        ("llama-7b-lora", "compiled: first loss, of what random weights give"),
        pytest.param("torchrun", "torchrun, lora: relative difference of last_loss", marks=pytest.mark.long),
    ],
)
def test_a_section_is_right(section, known, capsys):
    found = {one["name"]: one for one in numbers(section, capsys)}
    assert known in found
    assert [one for one in found.values() if one.get("ok") is False or one["value"] is None] == []


def test_a_wrong_kernel_is_told_and_the_rest_is_measured(capsys, monkeypatch):
    right = attention._one_by_one

    def leaking(q, k, v, starts, longest, scale, left):
        return right(q, k, v, starts[[0, -1]], longest, scale, left)

    monkeypatch.setattr(attention, "_one_by_one", leaking)
    (wrong,) = [one for one in numbers("kernels", capsys) if one.get("ok") is False]
    assert "gradients are off" in wrong["error"]
    found = numbers("qwen3-0.6b", capsys)
    assert [one["name"] for one in found if one.get("ok") is False] == ["qwen3-0.6b: attention varlen"]
    assert "attention sdpa: tokens/s" in [one["name"] for one in found]


def test_a_number_that_is_none_is_wrong(capsys):
    at_most("loss", float("nan"), 1.0)
    assert json.loads(capsys.readouterr().out) == {"name": "loss", "value": "nan", "ok": False, "at_most": 1.0}


def test_a_section_that_is_not_done_in_time_stops_no_other(capsys, monkeypatch):
    monkeypatch.setattr(check, "SECTIONS", {name: check.SECTIONS[name] for name in ("kernels", "losses")})
    ask = check._section
    monkeypatch.setattr(
        check, "_section", lambda name, limit_s, *, tiny: ask(name, 5.01 if name == "kernels" else limit_s, tiny=tiny)
    )
    monkeypatch.setattr(check.threading, "Timer", hurried(check.threading.Timer))
    assert check.main(["--tiny", "--minutes", "60"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["ok"] is False
    assert found["sections"]["kernels"]["error"].startswith("not done after")
    assert found["sections"]["losses"]["ok"] is True
    assert "right" in said.err


def hurried(timer):
    """A timer for which 5.01 seconds are none."""
    return lambda seconds, *rest: timer(0.0 if seconds == 5.01 else seconds, *rest)


def test_exit_code_and_json_say_whether_a_number_is_wrong(capsys, monkeypatch):
    results = {"kernels": {"ok": True, "numbers": []}, "losses": {"ok": False, "wrong": ["loss"], "numbers": []}}
    monkeypatch.setattr(check, "_section", lambda name, limit_s, *, tiny: results[name])
    assert check.main(["--tiny", "--only", "kernels"]) == 0
    assert json.loads(capsys.readouterr().out)["sections"] == {"kernels": results["kernels"]}
    assert check.main(["--tiny", "--only", "kernels,losses"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_mistakes_are_one_line(capsys, monkeypatch):
    assert check.main(["--only", "fit"]) == 2
    assert capsys.readouterr().err.startswith("gpu-check: no section fit; there are fits, kernels")
    monkeypatch.setattr(check, "NEEDED", ("torch", "no_such_package"))
    assert check.main([]) == 2
    assert "no_such_package cannot be imported" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert check.main([]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_it_needs_neither_ray_nor_vllm():
    """A GPU machine may have torch and little else: what the rooms load is in `unit/test_imports.py`."""
    files = (check.ROOT / "bench" / "gpu_check").glob("*.py")
    used = set(
        re.findall(r"(?:from|import) (lion_ray\.\w+|bench\.\w+|tests\.\w+)", "".join(map(Path.read_text, files)))
    )
    assert used == {"bench.gpu_check", "tests.tiny", "lion_ray.config", "lion_ray.imitation", "lion_ray.models"}


def test_only_a_gpu_has_a_peak_of_memory():
    assert TINY.peak_gib() is None
    assert replace(TINY, tiny=False).gpus == 0
