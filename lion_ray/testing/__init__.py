"""Contract tests that a plug-in can inherit: of parts of a run (`parts`) and of trackers (`trackers`)."""

from lion_ray.testing.parts import JudgeContract, ObjectiveContract, PromptSourceContract, RowFilterContract
from lion_ray.testing.trackers import TrackerContract

__all__ = ["JudgeContract", "ObjectiveContract", "PromptSourceContract", "RowFilterContract", "TrackerContract"]
