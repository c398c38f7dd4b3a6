"""The run's configuration: its keys, and their meaning.

Invariants:
- A configuration is frozen. An unknown key is an error that suggests the nearest known name.
- Every field is described in one line (a test checks it); the schema shows this description.
- No secrets: the configuration names the environment variable that holds an API key.
- A field marked `operational` changes how a run executes, never its results; only those may differ when a run is
  resumed.
- Data files and templates are found relative to the config file; `storage_path` relative to the working directory.

This package defines the configuration's shape; `config.file` reads YAML and reports mistakes.
"""

from lion_ray.config.checks import CheckConfig, EvaluationConfig, SuiteConfig, check_name
from lion_ray.config.endpoints import BatchConfig, EndpointConfig, LimitsConfig, PricesConfig, ServeConfig
from lion_ray.config.imitation import ImitationConfig, LoraConfig
from lion_ray.config.on_policy import OnPolicyConfig, RubricatorConfig, VerifierConfig
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
    PlateauConfig,
    RunConfig,
    StopConfig,
    StudentConfig,
    TeacherConfig,
    answers_heldout,
    endpoints_in_use,
    judges_heldout,
    models_in_use,
    paid_roles,
    splits,
)
from lion_ray.config.section import AttentionKernel, Dtype, NumberType, Precision, Section, operational
from lion_ray.config.tracking import TrackingConfig

__all__ = [
    "MANY_SHARDS",
    "MAX_SHARD_ROWS",
    "SHARD_ROWS",
    "AttentionKernel",
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
    "OnPolicyConfig",
    "PlateauConfig",
    "Precision",
    "PricesConfig",
    "RefereeConfig",
    "RubricatorConfig",
    "RunConfig",
    "Section",
    "ServeConfig",
    "StopConfig",
    "StudentConfig",
    "SuiteConfig",
    "TeacherConfig",
    "TrackingConfig",
    "VerifierConfig",
    "answers_heldout",
    "check_name",
    "endpoints_in_use",
    "judges_heldout",
    "models_in_use",
    "operational",
    "paid_roles",
    "splits",
]
