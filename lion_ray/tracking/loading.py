"""Creates the trackers of a configuration's `tracking`, before anything is started or spent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lion_ray.config.tracking import MlflowTracking, TensorBoardTracking, TrackingConfig, WandbTracking, tracker_name
from lion_ray.core.addresses import without_secrets
from lion_ray.core.errors import ConfigError
from lion_ray.core.plugins import make
from lion_ray.tracking.base import METHODS, Tracker
from lion_ray.tracking.fan_out import Named


def load_trackers(
    tracking: Sequence[TrackingConfig], base_dir: Path, key: str = "tracking", *, root: str = ""
) -> list[Named]:
    """The trackers of a configuration, ready to begin; nothing is opened or sent.

    Args:
        base_dir: the configuration file's folder, where the user's own modules are searched.
        key: the configuration key of the list, for errors.
        root: the run's folder.

    Raises:
        ConfigError: a package is missing, a key is not set, or a class cannot be imported or made.
    """
    return [
        Named(tracker_name(one), _load(one, base_dir, f"{key}.{number}", root)) for number, one in enumerate(tracking)
    ]


def _load(config: TrackingConfig, base_dir: Path, key: str, root: str) -> Tracker:
    # Each module imports its package only when the tracker begins, in the tracker's own thread.
    if isinstance(config, TensorBoardTracking):
        from lion_ray.tracking.tensorboard import TensorBoard

        _require(key, "tensorboard", "tensorboard")
        where = config.folder or root
        if "://" in where:
            raise ConfigError(
                f"{key}.folder: TensorBoard's files need a local folder, not {without_secrets(where)}; set this key"
            )
        return TensorBoard(config.folder)
    if isinstance(config, WandbTracking):
        from lion_ray.tracking.wandb import Wandb

        _require(key, "wandb", "wandb")
        if config.mode == "online" and not os.environ.get("WANDB_API_KEY"):
            raise ConfigError(f"{key}: WANDB_API_KEY is not set; export it, or set {key}.mode to offline")
        return Wandb(config.project, config.entity, config.mode)
    if isinstance(config, MlflowTracking):
        from lion_ray.tracking.mlflow import Mlflow

        _require(key, "mlflow", "mlflow")
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ConfigError(f"{key}.tracking_uri: missing; give the server's address, or export MLFLOW_TRACKING_URI")
        return Mlflow(uri, config.experiment)
    made: Tracker = make(config.import_path, config.options, base_dir, f"{key}.import_path", *METHODS)
    return made


def _require(key: str, module: str, extra: str) -> None:
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(
            f"{key}: the package {module} is not installed; pip install 'lion-ray[{extra}]', or remove the tracker"
        )
