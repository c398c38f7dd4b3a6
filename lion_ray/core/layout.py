"""The layout of a run's folder: every path in a run is made here, and nowhere else.

Invariants:
- A path is relative to the run's folder and uses slashes on every storage.
- Pool 0 is the user's own; pool p > 0 holds what iteration p generated. `HELDOUT` is never trained on.
- A stage is a folder: numbered parts, a few files, and the manifest that commits them (see `stage_folder`).

    run.json  attempt.json  progress.json  stopped.json  report.html
    questions.parquet  quarantine.jsonl  contaminated.jsonl
    pool-P/          instructions: parts and a manifest
    answers-P/       the teacher's answers to pool P; filtered/: which of them are left out of the training;
                     answers-heldout/checks: the checks' scores of them
    iteration-K/     result.json  candidates.parquet
      checkpoint/    model/, steps/ with every step's metrics, progress.json while fine-tuning runs
      rounds/        on-policy rounds: round-R/ with prompts.parquet, samples/, rubrics/, rewards/, checkpoint/
      student/       the student's answers to the Cache Pool
      verdicts/      the judge's verdicts on them, hard.parquet, easy.parquet
      canaries/      the judge's verdicts on the canary pairs
      heldout/       student/, verdicts/ and checks/ of the held-out set
    attempts/  fits/  journal/  stalls/  evaluations/  tensorboard/

This module knows nothing of the files' content.
"""

from __future__ import annotations

import re

RUN = "run.json"
"""The run's description: its configuration, the folder of its configuration file, and the versions it ran on."""
PROGRESS = "progress.json"
"""Progress of the run; in a checkpoint's folder, progress of its fine-tuning."""
STOPPED = "stopped.json"
"""Written if the run stopped early: after which iteration, and why."""
QUESTIONS = "questions.parquet"
"""Questions of the evaluation sets; no training row may resemble them."""
QUARANTINE = "quarantine.jsonl"
"""The user's rows that could not be used."""
CONTAMINATED = "contaminated.jsonl"
"""The user's rows that resemble an evaluation set's question."""
REPORT = "report.html"
MANIFEST = "manifest.json"
TRAINING = "training.json"
"""Metrics of the fine-tuning, in a checkpoint's model folder."""
CANARY = "canary.json"
"""The trainer's greedy continuations (`inference.weight_check`), beside it."""

DISCRIMINATOR = "discriminator.safetensors"
"""The weights of a round's discriminator, in its folder."""

ATTEMPT = "attempt.json"
"""The attempt that holds the run, and its heartbeat."""
ATTEMPTS = "attempts"
FITS = "fits"
"""Checkpoints within a fit."""
JOURNAL = "journal"
STALLS = "stalls"
"""Stack traces of actors that missed their heartbeat."""
EVALUATIONS = "evaluations"
CALIBRATION = "judge.json"
"""The calibration of the run's judge, among the evaluations."""
TENSORBOARD = "tensorboard"
"""The TensorBoard tracker's folder, unless its configuration names another."""

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
    """The stage that records which of the teacher's answers to a pool are left out of the training."""
    return f"{answers(name)}/filtered"


def iteration(number: int) -> str:
    return f"iteration-{number}"


def iteration_number(name: str) -> int | None:
    """The iteration whose folder has this name. Returns None for other folders."""
    match = _ITERATION.fullmatch(name)
    return None if match is None else int(match[1])


def checkpoint(number: int) -> str:
    """The stage of an iteration's fine-tuning."""
    return f"{iteration(number)}/checkpoint"


def model(number: int) -> str:
    """The student after an iteration's fine-tuning, a folder in the format of transformers."""
    return model_of(checkpoint(number))


def rounds(number: int) -> str:
    """The stage of an iteration's on-policy rounds."""
    return f"{iteration(number)}/rounds"


def round_prompts(number: int, round_: int) -> str:
    """The instructions of a round, with the teacher's answers; rounds are numbered from 1."""
    return f"{rounds(number)}/round-{round_}/prompts.parquet"


def round_samples(number: int, round_: int) -> str:
    """The stage with the student's own answers in a round."""
    return f"{rounds(number)}/round-{round_}/samples"


def round_rubrics(number: int, round_: int) -> str:
    """The stage with the criteria for a round's instructions."""
    return f"{rounds(number)}/round-{round_}/rubrics"


def round_discriminator(number: int, round_: int) -> str:
    """The discriminator that rewarded a round's answers."""
    return f"{rounds(number)}/round-{round_}/discriminator"


def round_rewards(number: int, round_: int) -> str:
    """The stage with the rewards of a round's answers."""
    return f"{rounds(number)}/round-{round_}/rewards"


def round_checkpoint(number: int, round_: int) -> str:
    """The stage of a round's fine-tuning."""
    return f"{rounds(number)}/round-{round_}/checkpoint"


def model_of(stage: str) -> str:
    """The model in a stage of fine-tuning, a folder in the format of transformers."""
    return f"{stage}/model"


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
    """The stage with an iteration's verdicts on the canary pairs."""
    return f"{iteration(number)}/canaries"


def candidates(number: int) -> str:
    """Every instruction that an iteration generated, accepted or rejected."""
    return f"{iteration(number)}/candidates.parquet"


def hard(stage: str) -> str:
    """The instructions of a stage's verdicts on which the student lags."""
    return f"{stage}/hard.parquet"


def easy(stage: str) -> str:
    """The instructions of a stage's verdicts on which the student keeps up."""
    return f"{stage}/easy.parquet"


def result(number: int) -> str:
    """An iteration's result, for other tools."""
    return f"{iteration(number)}/result.json"


def manifest(stage: str) -> str:
    return f"{stage}/{MANIFEST}"


def progress(stage: str) -> str:
    return f"{stage}/{PROGRESS}"


def fit(number: int, round_: int = 0) -> str:
    """The checkpoints within an iteration's fit, or within a round's, until that is committed."""
    return f"{FITS}/{fit_name(number, round_)}"


def fit_name(number: int, round_: int = 0) -> str:
    """A fit's name; `round_`: the on-policy round, 0 for the imitation."""
    return f"{iteration(number)}-round-{round_}" if round_ else iteration(number)


def steps(stage: str, number: int) -> str:
    """A file with some of the steps of a fit (`core.step_log`)."""
    return f"{stage}/steps/{number:05d}.jsonl"


def part(stage: str, index: int) -> str:
    return f"{stage}/part-{index:05d}.parquet"


def part_index(name: str) -> int | None:
    """The number of a part, from its file's name. Returns None for other files."""
    match = _PART.fullmatch(name)
    return None if match is None else int(match[1])


def evaluation(name: str) -> str:
    """A file with an evaluation's results."""
    return f"{EVALUATIONS}/{name}"


def iteration_of(stage: str) -> int:
    """The iteration that a stage belongs to; answers to pool p belong to iteration p + 1."""
    match = _STAGE.fullmatch(stage)
    if match is None:
        return 0
    return int(match[2]) + (match[1] == "answers")
