"""A base model, a run, and what became of exporting it, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lion_ray.core.store import RunStore
from lion_ray.export.folder import export
from lion_ray.export.source import Source
from tests.export.runs import make_run
from tests.tiny import make_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "base-model")


@pytest.fixture(scope="session")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """To be read only."""
    return make_run(str(tmp_path_factory.mktemp("runs") / "little"), base)


@pytest.fixture(scope="session")
def exported(run: RunStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    out = tmp_path_factory.mktemp("exports") / "little"
    export(Source.open(run), out, say=lambda _: None)
    return out
