"""Contract tests that a plug-in can inherit: for parts of a run (`parts`) and for trackers (`trackers`)."""

from lion_ray.testing.parts import JudgeContract, ObjectiveContract, PromptSourceContract, RowFilterContract
from lion_ray.testing.trackers import TrackerContract

__all__ = ["JudgeContract", "ObjectiveContract", "PromptSourceContract", "RowFilterContract", "TrackerContract"]
