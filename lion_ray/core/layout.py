"""Where everything lies in a run's folder: every path of a run is made here, and nowhere else.

Invariants:
- A path is relative to the run's folder, with slashes, whatever storage it is on.
- Pool p is the user's own for p = 0 and what iteration p generated otherwise; `HELDOUT` is what nobody trains on.
- A stage is a folder: numbered parts, a few files, and the manifest that commits them (see `stage_folder`).

    run.json  attempt.json  progress.json  stopped.json  report.html
    questions.parquet  quarantine.jsonl  contaminated.jsonl
    pool-P/          instructions: parts and a manifest
    answers-P/       the teacher's answers to pool P; filtered/: which of them are left out of the training;
                     answers-heldout/checks: what the checks say of them
    iteration-K/     result.json  candidates.parquet
      checkpoint/    model/, steps/ with what every step measured, progress.json while it is fitted
      student/       the student's answers to the Cache Pool
      verdicts/      the judge's verdicts on them, hard.parquet, easy.parquet
      canaries/      the judge's verdicts on the canary pairs
      heldout/       student/, verdicts/ and checks/ of the held-out set
    attempts/  fits/  journal/  stalls/  evaluations/  tensorboard/

This module knows nothing of what is in the files.
"""

from __future__ import annotations

import re

RUN = "run.json"
"""What the run is: its configuration, where that came from, and the versions it ran on."""
PROGRESS = "progress.json"
"""What is under way: of the run, and within a checkpoint's folder of its fit."""
STOPPED = "stopped.json"
"""That the run ended early, after which iteration, and why."""
QUESTIONS = "questions.parquet"
"""Of the evaluation sets that nothing trained on may resemble."""
QUARANTINE = "quarantine.jsonl"
"""The user's rows that could not be used."""
CONTAMINATED = "contaminated.jsonl"
"""The user's rows that resemble an evaluation set's question."""
REPORT = "report.html"
MANIFEST = "manifest.json"
TRAINING = "training.json"
"""In a checkpoint's model folder: what its fit measured."""

ATTEMPT = "attempt.json"
"""Who works on the run, and that it is alive."""
ATTEMPTS = "attempts"
FITS = "fits"
"""Checkpoints within a fit."""
JOURNAL = "journal"
STALLS = "stalls"
"""Stacks of actors that did not answer."""
EVALUATIONS = "evaluations"
TENSORBOARD = "tensorboard"
"""What the TensorBoard tracker writes, where its configuration names no other folder."""

HELDOUT = "heldout"

_PART = re.compile(r"part-(\d{5,})\.parquet")
_STAGE = re.compile(r"(answers|iteration|pool)-(\d+)(/.*)?")
_ITERATION = re.compile(r"iteration-(\d+)")


def pool(name: str | int) -> str:
    """The stage that holds a pool's instructions."""
    return f"pool-{name}"


def answers(name: str | int) -> str:
    """The stage that holds the teacher's answers to a pool."""
    return f"answers-{name}"


def filtered(name: str | int) -> str:
    """The stage that says which of the teacher's answers to a pool are left out of the training."""
    return f"{answers(name)}/filtered"


def iteration(number: int) -> str:
    return f"iteration-{number}"


def iteration_number(name: str) -> int | None:
    """The iteration whose folder has this name; None for other folders."""
    match = _ITERATION.fullmatch(name)
    return None if match is None else int(match[1])


def checkpoint(number: int) -> str:
    """The stage of an iteration's fine-tuning."""
    return f"{iteration(number)}/checkpoint"


def model(number: int) -> str:
    """The folder of the student after an iteration's fine-tuning, as transformers writes one."""
    return f"{checkpoint(number)}/model"


def judged(number: int, *, heldout: bool = False) -> str:
    """The folder with an iteration's student answers and verdicts, on the Cache Pool or on the held-out set."""
    return f"{iteration(number)}/{HELDOUT}" if heldout else iteration(number)


def student_answers(number: int, *, heldout: bool = False) -> str:
    return f"{judged(number, heldout=heldout)}/student"


def verdicts(number: int, *, heldout: bool = False) -> str:
    return f"{judged(number, heldout=heldout)}/verdicts"


def checks(number: int | None) -> str:
    """The stage with the checks' scores of an iteration's held-out answers, or of the teacher's (None)."""
    return f"{answers(HELDOUT) if number is None else judged(number, heldout=True)}/checks"


def canaries(number: int) -> str:
    """The stage in which an iteration's judge is judged."""
    return f"{iteration(number)}/canaries"


def candidates(number: int) -> str:
    """Everything that an iteration's generator wrote, accepted or not."""
    return f"{iteration(number)}/candidates.parquet"


def hard(stage: str) -> str:
    """The instructions of a stage's verdicts on which the student lags."""
    return f"{stage}/hard.parquet"


def easy(stage: str) -> str:
    """The instructions of a stage's verdicts on which the student keeps up."""
    return f"{stage}/easy.parquet"


def result(number: int) -> str:
    """What an iteration came to, for other tools."""
    return f"{iteration(number)}/result.json"


def manifest(stage: str) -> str:
    return f"{stage}/{MANIFEST}"


def progress(stage: str) -> str:
    return f"{stage}/{PROGRESS}"


def fit(number: int) -> str:
    """The checkpoints within an iteration's fit, until that is committed."""
    return f"{FITS}/{iteration(number)}"


def steps(stage: str, number: int) -> str:
    """A file with some of the steps of a fit (`core.step_log`)."""
    return f"{stage}/steps/{number:05d}.jsonl"


def part(stage: str, index: int) -> str:
    return f"{stage}/part-{index:05d}.parquet"


def part_index(name: str) -> int | None:
    """The number of a part, by its file's name; None for other files."""
    match = _PART.fullmatch(name)
    return None if match is None else int(match[1])


def evaluation(name: str) -> str:
    """A file with what an evaluation found."""
    return f"{EVALUATIONS}/{name}"


def iteration_of(stage: str) -> int:
    """The iteration that a stage belongs to: answers to pool p are iteration p + 1's."""
    match = _STAGE.fullmatch(stage)
    if match is None:
        return 0
    return int(match[2]) + (match[1] == "answers")
