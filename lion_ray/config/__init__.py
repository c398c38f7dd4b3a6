"""The run's configuration: what a user may say, and what each thing means.

Invariants:
- Frozen, and unknown keys are refused with the nearest known name.
- Every field is described in one line (a test checks it); the description is what the schema shows.
- No secrets: a key is named by the environment variable that holds it.
- A field marked `operational` changes how a run is carried out, never what comes out of it; only those may differ
  when a run is resumed.
- Data files and templates are found relative to the config file; `storage_path` relative to the working directory.

This package knows the shape of a configuration; reading YAML and telling mistakes is `config.file`'s.
"""

from lion_ray.config.checks import CheckConfig, EvaluationConfig, SuiteConfig, check_name
from lion_ray.config.endpoints import BatchConfig, EndpointConfig, LimitsConfig, PricesConfig, ServeConfig
from lion_ray.config.referee import RefereeConfig
from lion_ray.config.run import (
    MANY_SHARDS,
    MAX_SHARD_ROWS,
    SHARD_ROWS,
    BudgetConfig,
    DataConfig,
    DiscriminationConfig,
    GenerationConfig,
    GeneratorConfig,
    ImitationConfig,
    LoraConfig,
    PlateauConfig,
    RunConfig,
    StopConfig,
    StudentConfig,
    TeacherConfig,
    answers_heldout,
    endpoints_in_use,
    judges_heldout,
    models_in_use,
    splits,
)
from lion_ray.config.section import Dtype, NumberType, Precision, Section, operational
from lion_ray.config.tracking import TrackingConfig

__all__ = [
    "MANY_SHARDS",
    "MAX_SHARD_ROWS",
    "SHARD_ROWS",
    "BatchConfig",
    "BudgetConfig",
    "CheckConfig",
    "DataConfig",
    "DiscriminationConfig",
    "Dtype",
    "EndpointConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "GeneratorConfig",
    "ImitationConfig",
    "LimitsConfig",
    "LoraConfig",
    "NumberType",
    "PlateauConfig",
    "Precision",
    "PricesConfig",
    "RefereeConfig",
    "RunConfig",
    "Section",
    "ServeConfig",
    "StopConfig",
    "StudentConfig",
    "SuiteConfig",
    "TeacherConfig",
    "TrackingConfig",
    "answers_heldout",
    "check_name",
    "endpoints_in_use",
    "judges_heldout",
    "models_in_use",
    "operational",
    "splits",
]
