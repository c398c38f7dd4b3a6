"""One cell of the experiment: a real run, and its students' scores by the known answers.

Invariants:
- A cell's result is a file written atomically after the run; if it exists, nothing is run again. A killed run resumes.
- The first line describes the cell; seconds and calls are the last attempt's, without those of a reused stem. It is
  followed by a line for each checkpoint, and one for each of its held-out answers.

`python -m bench.learning.experiment FOLDER CELL URL` runs one cell in its own process.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.harness import ROOT, BenchError
from bench.learning import world
from bench.learning.arms import STUDENT_PROMPT, Cell, config
from bench.learning.endpoint import Endpoint, endpoint
from lion_ray.core import layout

if TYPE_CHECKING:
    from lion_ray import RunResult


STEM = (
    layout.pool(0),
    layout.pool(layout.HELDOUT),
    layout.answers(0),
    layout.answers(layout.HELDOUT),
    layout.iteration(0),
    layout.checkpoint(1),
)
"""The stages of a run up to its first imitation: nothing in them depends on a judge."""
STEM_ANSWERS = (layout.student_answers(1), layout.judged(1, heldout=True))
"""What follows without on-policy rounds: the answers of the first student."""
STEM_FROM = "stem.json"
"""A file in a run's folder: the run from which these stages were copied."""


def result_file(folder: Path, cell: Cell) -> Path:
    return folder / "results" / f"{cell.name}.jsonl"


def ensure(folder: Path, cell: Cell, *, alone: bool = False) -> Path:
    """The cell's result; if it is missing, runs the cell in its own process. Raises BenchError.

    `alone`: reuse nothing of another run.
    """
    file = result_file(folder, cell)
    if not file.exists():
        # Start the endpoint here, because Ray ends all children of the run's process when it shuts down.
        if not alone:
            take_stem(folder, cell)
        with endpoint(cell.nature) as served:
            arguments = (str(folder), json.dumps(asdict(cell)), served.url)
            command = [sys.executable, "-m", "bench.learning.experiment", *arguments]
            with subprocess.Popen(command, cwd=ROOT, env=_environment()) as process:
                try:
                    code = process.wait()
                except SystemExit:
                    process.terminate()  # a run stops its own processes; Ctrl-C it gets from the terminal
                    raise
        if code or not file.exists():
            raise BenchError(f"{cell.name} ended with {code}; the same command resumes it")
    return file


def take_stem(folder: Path, cell: Cell) -> str | None:
    """Start a run with the first imitation of a finished run with the same stem; returns the other run's name.

    All arms with the same pool, teacher and fit have the same first student, which need not be trained for each.
    """
    target = run_folder(folder, cell)
    if target.exists():
        return None
    for file in sorted((folder / "results").glob("*.jsonl")):
        other = Cell.of({name: read_result(file)[0][name] for name in asdict(cell)})
        source = run_folder(folder, other)
        stages = STEM if cell.has_rounds or other.has_rounds else (*STEM, *STEM_ANSWERS)
        if other.name == file.stem and other.stem == cell.stem and all((source / one).is_dir() for one in stages):
            partial = target.with_name(f"{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            for one in stages:
                shutil.copytree(source / one, partial / one, copy_function=_link_or_copy)
            (partial / STEM_FROM).write_text(json.dumps(other.name))
            partial.rename(target)
            return other.name
    return None


def run_folder(folder: Path, cell: Cell) -> Path:
    return folder / "runs" / cell.name


def _link_or_copy(source: str, target: str) -> None:
    """Link weights, which are large and never changed; copy other files."""
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _environment() -> dict[str, str]:
    """This process's environment, with the repository first in PYTHONPATH, which Ray's workers inherit."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def run(folder: Path, cell: Cell, served: Endpoint) -> None:
    """Run or resume a cell against its endpoint, and write its result."""
    from lion_ray import distil

    inputs = folder / "inputs"
    write_inputs(inputs, cell)
    began = time.monotonic()
    values = config(cell, served.url) | {"run_name": cell.name, "storage_path": str(folder / "runs")}
    result = distil(values, base_dir=inputs, overrides=cell.overrides)
    about = {
        "kind": "cell",
        **asdict(cell),
        "answers": cell.size.answers,
        "seconds": round(time.monotonic() - began, 1),
        "attempt": int(_read(Path(result.root) / "attempt.json")["attempt"]),
        "stem_of": _read(stem) if (stem := Path(result.root) / STEM_FROM).exists() else None,
        "calls": served.counts(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    write_result(result_file(folder, cell), [about, *measured(result)])


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def write_inputs(inputs: Path, cell: Cell) -> None:
    """Write the files that a cell's configuration names: pool, held-out rows with references, the student's prompt."""
    inputs.mkdir(parents=True, exist_ok=True)
    names = config(cell, "")["data"]
    heldout = world.heldout(cell.size.heldout_per_family)
    pool = world.pool(cell.size.seed_rows, cell.seed, {task.instruction for task in heldout})
    (inputs / "student.txt").write_text(STUDENT_PROMPT)
    (inputs / names["pool"]).write_text(_lines({"instruction": task.instruction} for task in pool))
    (inputs / names["heldout"]).write_text(
        _lines({"instruction": task.instruction, "reference": task.answer} for task in heldout)
    )


def measured(result: RunResult) -> Iterable[dict[str, Any]]:
    """Each checkpoint's scores, answers and training rows."""
    texts = {row["id"]: row["text"] for row in result.pool("heldout").to_pylist()}
    answers = 0
    for one in result.iterations:
        taught: dict[str, Any] = {}
        if one.iteration:
            taught = _taught(result, one.iteration - 1)
            answers += taught["answers"]
        rows = list(_scored(result.student(one.iteration, heldout=True).to_pylist(), texts))
        yield {
            "kind": "checkpoint",
            "iteration": one.iteration,
            "answers": answers,
            "right": sum(row["right"] for row in rows),
            "rows": len(rows),
            "loss": one.loss_after,
            "hard": one.hard,
            "easy": one.easy,
            "taught": taught,
        }
        yield from ({"kind": "answer", "iteration": one.iteration} | row for row in rows)


def _scored(answers: Iterable[Mapping[str, Any]], texts: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    for answer in answers:
        task = world.read(texts[answer["id"]])
        assert task is not None
        yield {
            "family": task.family,
            "instruction": task.instruction,
            "answer": answer["text"],
            "right": world.is_right(answer["text"], task.answer),
        }


def _taught(result: RunResult, pool: int) -> dict[str, Any]:
    """An imitation's training rows by source and family, and how many of the teacher's answers are right."""
    answers = {row["id"]: row for row in result.answers(pool).to_pylist()}
    families: dict[str, Counter[str]] = {}
    right = usable = 0
    for row in result.pool(pool).to_pylist():
        task = world.read(row["text"])
        assert task is not None
        families.setdefault(row["source"], Counter())[task.family] += 1
        usable += answers[row["id"]]["status"] == "ok"
        right += world.is_right(answers[row["id"]]["text"], task.answer)
    return {"answers": usable, "right": right, "families": families}


def write_result(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(_lines(rows))
    partial.replace(file)


def read_result(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> int:
    from lion_ray import LionError

    try:
        run(Path(sys.argv[1]), Cell.of(json.loads(sys.argv[2])), Endpoint(sys.argv[3]))
    except LionError as error:
        print(f"learning: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
