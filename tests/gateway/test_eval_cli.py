"""`lion-ray eval` as a user types it: a process of its own against a stub endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.test_evaluation import judging, lettered
from tests.stub_api import StubAPI
from tests.unit.test_benchmarks import bbh_file
from tests.warm import lion

ROOT = Path(__file__).resolve().parents[2]


def more(before: int, stats: dict[str, Any]) -> bool:
    """Whether a request has come since."""
    return bool(stats["total"] > before)


async def lion_ray(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    words = ("eval", *map(str, arguments))
    return await asyncio.to_thread(lion, *words, cwd=cwd, env={"STUB_KEY": "sk-planted"})


async def start(*arguments: object, cwd: Path) -> asyncio.subprocess.Process:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "STUB_KEY": "sk-planted"}
    command = [sys.executable, "-m", "lion_ray", "eval", *map(str, arguments)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe)


def configuration(path: Path, stub: StubAPI) -> Path:
    shared = {"base_url": stub.base_url, "api_key_env": "STUB_KEY", "prices": {"input": 1, "output": 2}}
    roles = ("student", "teacher", "judge")
    config: dict[str, Any] = {
        "run_name": "x",
        "data": {"pool": "p.jsonl"},
        "student": {"model": "none"},
        "endpoints": {name: {"model": name, **shared} for name in roles},
        "teacher": {"endpoint": "teacher"},
        "referee": {"endpoint": "judge"},
        "generator": {"endpoint": "teacher"},
    }
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


@pytest.fixture
def vicuna(tmp_path: Path) -> Path:
    rows = [{"question_id": n, "text": f"Question {n}?", "category": f"c{n % 9}"} for n in range(80)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "question.jsonl"


async def test_relative_quality(stub: StubAPI, tmp_path: Path, vicuna: Path) -> None:
    stub.answer, stub.api_key = judging, "sk-planted"
    config = configuration(tmp_path / "mine.yaml", stub)
    command: list[Any] = [f"{config}:student", "--suite", "vicuna80", "--questions", vicuna, "--judge-prompt", "scores"]
    command += ["--reference", f"{config}:teacher", "--judge", f"{config}:judge", "--budget", "1"]
    code, out, err = await lion_ray(*command, cwd=tmp_path)
    assert code == 0, err
    assert "50.0%" in out
    assert "Lion-7B (paper)" in out
    assert "c8" in out
    sent = stub.stats()["total"]
    assert sent == 80 + 80 + 80 * 7
    code, out, err = await lion_ray("run", *command, "--json", cwd=tmp_path)
    assert code == 0, err
    found = json.loads(out)
    assert found["relative"]["ratio"] == 0.5
    assert found["cost"]["judge"]["bought"] == 0
    assert stub.stats()["total"] == sent
    (result,) = (tmp_path / "evaluations").glob("*.json")
    assert json.loads(result.read_text()) == found | {"made_at": json.loads(result.read_text())["made_at"]}
    everything = b"".join(path.read_bytes() for path in (tmp_path / "evaluations").rglob("*") if path.is_file())
    assert b"sk-planted" not in everything + out.encode() + err.encode()


@pytest.mark.parametrize("suite", ["bbh", "agieval"])
async def test_letters(stub: StubAPI, tmp_path: Path, suite: str) -> None:
    stub.answer = lettered(lambda _: "(B)")
    data = tmp_path / suite
    if suite == "bbh":
        bbh_file(data, "web_of_lies", [{"input": f"Lies {n}?", "target": ("Yes", "No")[n % 2]} for n in range(4)])
    else:
        data.mkdir()
        row = {"passage": None, "question": "Which?", "options": ["(A)this", "(B)that"], "label": "B"}
        (data / "sat-en.jsonl").write_text((json.dumps(row) + "\n") * 206)
    target = f"{stub.base_url}#student"
    code, out, err = await lion_ray(target, "--suite", suite, "--data", data, "--out", "here", "--json", cwd=tmp_path)
    assert code == 0, err
    found = json.loads(out)
    assert found["mean"] == (0.5 if suite == "bbh" else 1.0)
    outputs = tmp_path / "here" / f"{suite}-student-published.jsonl"
    code, out, err = await lion_ray(
        "score", "--suite", suite, "--data", data, "--outputs", outputs, "--json", cwd=tmp_path
    )
    assert code == 0, err
    again = json.loads(out)
    assert {key: found[key] for key in again} == again


async def test_an_interrupted_evaluation_keeps_what_was_paid_for(stub: StubAPI, tmp_path: Path, vicuna: Path) -> None:
    stub.answer = judging
    command: list[Any] = [f"{stub.base_url}#student", "--suite", "vicuna80", "--questions", vicuna, "--setting", "1"]
    command += ["--reference", f"{stub.base_url}#teacher", "--judge", f"{stub.base_url}#judge"]
    command += ["--judge-prompt", "scores"]
    for number in (signal.SIGINT, signal.SIGTERM):
        stub.gate.clear()
        arrived = stub.stats()["total"]
        process = await start(*command, cwd=tmp_path)
        await stub.until(partial(more, arrived))
        process.send_signal(number)
        stub.gate.set()
        _, err = await process.communicate()
        assert process.returncode == 130, err
        assert b"interrupted; the same command resumes" in err
        assert b"Traceback" not in err
    code, out, err_text = await lion_ray(*command, "--json", cwd=tmp_path)
    assert code == 0, err_text
    assert json.loads(out)["relative"]["n"] == 80
    stats = stub.stats()
    assert stats["completed"] == 240
    assert stats["repeated"] == {}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nobody", "--suite", "bbh", "--data", "x"], 2, "TARGET nobody: there is no such run, model folder or file"),
        (["http://127.0.0.1:9/v1#m", "--suite", "bbh"], 2, "--suite bbh needs its questions: --data FOLDER"),
        (["http://127.0.0.1:9/v1#m", "--suite", "vicuna80"], 2, "--reference is missing"),
        (["http://127.0.0.1:9/v1#m", "--suite", "bbh", "--data", "none"], 3, "it has no file of bbh"),
        (["http://127.0.0.1:9/v1#m", "--suite", "bbh", "--judge", "x"], 2, "--suite bbh takes --data"),
        (["http://127.0.0.1:9/v1#m", "--suite", "bbh", "--temperature", "1"], 2, "runs at temperature 0"),
        (["http://127.0.0.1:9/v1#m", "--suite", "bbh", "--dtype", "float16"], 2, "--dtype are only for models"),
        (["http://127.0.0.1:9/v1", "--suite", "bbh", "--data", "x"], 2, "name its model"),
    ],
)
async def test_mistakes_are_told_in_a_line(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    found, _, err = await lion_ray(*arguments, cwd=tmp_path)
    assert found == code, err
    assert said in err
    assert "Traceback" not in err
