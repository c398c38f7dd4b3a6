"""The pipeline: every stage of an iteration, in the order of a sequential run.

The loop runs it and the plan prices it; results, status, report and export read it. A new stage is a class and a line.
"""

from __future__ import annotations

from lion_ray.core import layout
from lion_ray.pipeline.stage import Phase, Stage, When
from lion_ray.pipeline.stages.canary_pairs import CanaryPairs
from lion_ray.pipeline.stages.checks import Checks, TeacherChecks
from lion_ray.pipeline.stages.filtering import Filtering
from lion_ray.pipeline.stages.fine_tuning import FineTuning
from lion_ray.pipeline.stages.generating import Generating
from lion_ray.pipeline.stages.importing import Importing
from lion_ray.pipeline.stages.judging import Judging, JudgingHeldout
from lion_ray.pipeline.stages.on_policy import OnPolicyRounds
from lion_ray.pipeline.stages.student_answers import StudentAnswers, StudentAnswersHeldout
from lion_ray.pipeline.stages.teacher_answers import TeacherAnswers, TeacherAnswersHeldout

PIPELINE: list[Stage] = [
    Importing(),
    TeacherAnswersHeldout(),
    TeacherChecks(),
    TeacherAnswers(),
    Filtering(),
    FineTuning(),
    OnPolicyRounds(),
    StudentAnswers(),
    Judging(),
    CanaryPairs(),
    Generating(),
    StudentAnswersHeldout(),
    Checks(),
    JudgingHeldout(),
]


def due(when: When, *phases: Phase) -> list[Stage]:
    """The stages that are due in an iteration, in order; only those of `phases`, if any are given."""
    stages = of_iteration(when.iteration)
    return [stage for stage in stages if (not phases or stage.phase in phases) and stage.due(when)]


def of_iteration(iteration: int) -> list[Stage]:
    """The stages that an iteration can have, in order."""
    return [stage for stage in PIPELINE if stage.occurs(iteration)]


def named(folder: str) -> str:
    """The name of the stage with this folder; the folder itself if no stage has it."""
    iteration = layout.iteration_of(folder)
    return next((stage.name for stage in of_iteration(iteration) if stage.folder(iteration) == folder), folder)
