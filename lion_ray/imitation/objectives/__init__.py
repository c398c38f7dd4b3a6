"""What a fit can minimise (`imitation.objective`). A new objective is a class, a configuration and a line here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from lion_ray.config.plugins import CrossEntropyConfig, FitObjective, Own, PolicyGradientConfig, PreferenceConfig
from lion_ray.core.plugins import make

if TYPE_CHECKING:
    from lion_ray.imitation.objectives.base import Objective

KEY = "imitation.objective"


def load_objective(config: FitObjective, base_dir: Path) -> Objective:
    """The objective that a configuration names.

    Raises ConfigError if a user's objective cannot be imported or constructed.
    """
    if isinstance(config, Own):
        found = make(config.import_path, config.options, base_dir, f"{KEY}.import_path", "loss", "count")
        found.columns = tuple(getattr(found, "columns", ()))
        found.min_gap = getattr(found, "min_gap", None)
        found.per_token = getattr(found, "per_token", False)
        return cast("Objective", found)
    if isinstance(config, PreferenceConfig):
        from lion_ray.imitation.objectives.preference import Preference

        return Preference(config)
    if isinstance(config, PolicyGradientConfig):
        from lion_ray.imitation.objectives.policy_gradient import PolicyGradient

        return PolicyGradient(config)
    assert isinstance(config, CrossEntropyConfig)
    from lion_ray.imitation.objectives.cross_entropy import CrossEntropy

    return CrossEntropy()
