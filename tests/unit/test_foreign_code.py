"""No code of a model, a data set or a run folder is run: every place where a library could is looked at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import lion_ray
from lion_ray.config import ServeConfig
from lion_ray.inference.server import ModelServer
from lion_ray.models import resolve as models

SOURCES = sorted(Path(lion_ray.__file__).parent.rglob("*.py"))
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "ray.cloudpickle"}


def calls(name: str) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """(place, keyword arguments) of every call of something with that last name."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name):
                yield f"{path.name}:{node.lineno}", {one.arg or "**": one.value for one in node.keywords}


def is_constant(given: dict[str, ast.expr], name: str, value: object) -> bool:
    found = given.get(name)
    return isinstance(found, ast.Constant) and found.value is value


def test_every_loader_of_transformers_refuses_remote_code() -> None:
    found = list(calls(".from_pretrained"))
    assert len(found) >= 4
    assert [place for place, given in found if not is_constant(given, "trust_remote_code", False)] == []


def test_models_are_loaded_from_safetensors_or_gguf() -> None:
    found = list(calls("ForCausalLM.from_pretrained"))
    assert len(found) >= 2
    odd = [place for place, given in found if not (is_constant(given, "use_safetensors", True) or "gguf_file" in given)]
    assert odd == []


def test_torch_loads_weights_only() -> None:
    found = [*calls("torch.load"), *calls("torch.hub.load")]
    assert found
    assert [place for place, given in found if not is_constant(given, "weights_only", True)] == []


def test_data_sets_run_no_scripts() -> None:
    found = list(calls("load_dataset"))
    assert found
    assert [place for place, given in found if "trust_remote_code" in given] == []


def test_only_the_reader_of_checkpoints_unpickles() -> None:
    """`state` names pickle's error; `dcp_files` has an unpickler with a list of classes; `tokens` talks by pipes with
    processes that it started itself, and reads no file."""
    named = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if UNPICKLERS & set(names):
                named[path.name] = path.read_text()
    assert sorted(named) == ["dcp_files.py", "state.py", "tokens.py"]
    del named["tokens.py"]
    assert not any(f"pickle.{what}(" in text for text in named.values() for what in ("load", "loads"))


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.bin", "w.pt", "w.pth", "w.pkl", "modeling_x.py"])
def test_a_hub_gives_neither_pickles_nor_code(name: str) -> None:
    """As huggingface_hub chooses: one of the first patterns, and none of the second."""
    wanted = any(fnmatch(name, pattern) for pattern in models._HUB_FILES)
    assert not wanted
    assert any(fnmatch(name, pattern) for pattern in models._HUB_SKIPPED)


def test_a_server_reads_safetensors_and_runs_no_code(tmp_path: Path) -> None:
    command = ModelServer(ServeConfig(model="m"), str(tmp_path), "m").command(1)
    assert command[command.index("--load-format") + 1] == "safetensors"
    assert not [one for one in command if "trust" in one]
