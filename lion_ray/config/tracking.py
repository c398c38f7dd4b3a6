"""The configuration of experiment trackers, which receive a run's metrics.

Invariants:
- A tracker is chosen by `type:`, or is the user's own class (`import_path:`). The room `tracking` implements them.
- No secrets: trackers read their keys from the environment (WANDB_API_KEY, MLFLOW_TRACKING_TOKEN, …).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, field_validator

from lion_ray.config.plugins import OWN, Own, by_kind
from lion_ray.config.section import Section
from lion_ray.core.addresses import check_storage


class TensorBoardTracking(Section):
    """TensorBoard's event files."""

    type: Literal["tensorboard"]
    """Write event files for TensorBoard."""
    folder: str | None = Field(None, min_length=1)
    """A local folder with a subfolder for each run; null: `tensorboard` in the run's folder."""


class WandbTracking(Section):
    """Weights & Biases."""

    type: Literal["wandb"]
    """Log to Weights & Biases; the key is in WANDB_API_KEY."""
    project: str = Field("lion-ray", min_length=1)
    """The project that the run belongs to."""
    entity: str | None = None
    """The user or team that owns the project; null: the key's owner."""
    mode: Literal["online", "offline"] = "online"
    """online, or offline: files that `wandb sync` uploads later."""


class MlflowTracking(Section):
    """MLflow."""

    type: Literal["mlflow"]
    """Log to an MLflow tracking server."""
    tracking_uri: str | None = Field(None, min_length=1)
    """The server's address, such as http://127.0.0.1:5000; null: MLFLOW_TRACKING_URI."""
    experiment: str = Field("lion-ray", min_length=1)
    """The experiment that the run belongs to; it is created if it does not exist."""

    @field_validator("tracking_uri")
    @classmethod
    def _no_secrets(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                check_storage(value)
            except ValueError:
                raise ValueError(
                    "the address holds a password or a key; put them into MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, or into MLFLOW_TRACKING_TOKEN"
                ) from None
        return value


TrackingConfig = Annotated[
    Annotated[TensorBoardTracking, Tag("tensorboard")]
    | Annotated[WandbTracking, Tag("wandb")]
    | Annotated[MlflowTracking, Tag("mlflow")]
    | Annotated[Own, Tag(OWN)],
    by_kind,
]
"""One tracker, chosen by its `type`."""


def tracker_name(config: TrackingConfig) -> str:
    """A tracker's name in logs."""
    return config.import_path if isinstance(config, Own) else config.type
