"""Model folders that hold code and pickles: what is no data is not run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from lion_ray.config import StudentConfig
from lion_ray.core.errors import LionError, ModelError
from lion_ray.imitation.training.model import load_model
from lion_ray.inference.engine_settings import engine_arguments
from lion_ray.models.prompter import Prompter
from tests.training.test_state import Call

CPU = torch.device("cpu")
CODE = "from pathlib import Path\nPath({marker!r}).mkdir()\nclass Foreign:\n    pass\n"
NAMES = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def plant_pickle(folder: Path, marker: Path) -> None:
    for name in ("pytorch_model.bin", "model.bin"):
        (folder / name).write_bytes(pickle.dumps(Call(os.mkdir, str(marker))))


def test_pickled_weights_are_no_weights(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    plant_pickle(folder, marker)
    load_model(folder, CPU)  # from the safetensors beside it
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no model can be loaded"):
        load_model(folder, CPU)
    assert not marker.exists()


@pytest.mark.parametrize("known", [True, False], ids=["a type of transformers' own", "a type of its own"])
def test_code_in_a_model_s_folder_is_not_run(folder: Path, tmp_path: Path, known: bool) -> None:
    marker = tmp_path / "ran"
    (folder / "foreign.py").write_text(CODE.format(marker=str(marker)))
    for name in ("config.json", "tokenizer_config.json"):
        written = json.loads((folder / name).read_text())
        written["auto_map"] = dict.fromkeys(NAMES, "foreign.Foreign")
        if not known:
            written |= {"model_type": "foreign"} if name == "config.json" else {"tokenizer_class": "Foreign"}
        (folder / name).write_text(json.dumps(written))
    for load in (lambda: load_model(folder, CPU), lambda: Prompter.load(str(folder), "chat")):
        # A type of its own is refused or, for a tokenizer, read as what its file holds.
        with nullcontext() if known else suppress(LionError):
            load()
    assert not marker.exists()


def test_an_engine_reads_safetensors_and_runs_no_code(tmp_path: Path) -> None:
    arguments = engine_arguments(StudentConfig(model="m"), tmp_path, 0)
    assert (arguments["trust_remote_code"], arguments["load_format"]) == (False, "safetensors")
