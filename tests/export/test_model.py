"""The student as files: the weights that were trained, asked as they were trained, and adapters that add up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lion_ray.config import LoraConfig
from lion_ray.core import layout
from lion_ray.core.errors import DataError
from lion_ray.core.store import RunStore
from lion_ray.export.folder import export
from lion_ray.export.model import ADAPTER_CONFIG, WEIGHTS, write_adapter, write_model
from lion_ray.export.model_card import model_card
from lion_ray.export.source import Source
from lion_ray.imitation.training.fit import train
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.models.prompter import Prompter
from tests.export.runs import make_run

LORA = LoraConfig(rank=4, alpha=8)


def quiet(_: str) -> None:
    """Nobody reads along."""


def test_the_weights_are_those_of_the_checkpoint(run: RunStore, exported: Path) -> None:
    own = Path(run.path("iteration-2/checkpoint/model"))
    assert (exported / "model" / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(exported / "model").dtype == torch.float32


def test_what_is_of_the_run_alone_stays_there(exported: Path) -> None:
    names = {path.name for path in (exported / "model").iterdir()}
    assert "canary.json" not in names
    spec = json.loads((exported / "model" / "training.json").read_text())["spec"]
    assert spec == {"epochs": 3}


@pytest.mark.parametrize("prompt", ["chat", "instruction", "own.txt"])
def test_the_folder_alone_asks_as_it_was_trained(base: Path, tmp_path: Path, prompt: str) -> None:
    (base.parent / "own.txt").write_text("Q: {instruction}\nA:")
    student = {"model": str(base), "prompt": prompt, "dtype": "float32"}
    source = Source.open(make_run(str(tmp_path / "run"), base, student=student))
    write_model(source, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    asked = [{"role": "user", "content": "Name a river."}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    prompter = Prompter.load(base, prompt, base.parent)
    assert ids == prompter.prompt_ids("Name a river.")
    ends = json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert set(prompter.stop_token_ids) <= set(ends if isinstance(ends, list) else [ends])


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A run whose two fits were real, on adapters, the second on top of the first."""
    store = make_run(
        str(tmp_path_factory.mktemp("adapted") / "run"), base, imitation={"max_length": 256, "lora": LORA.model_dump()}
    )
    start = base
    for iteration in (1, 2):
        out = Path(store.path(f"iteration-{iteration}/checkpoint/model"))
        out.rename(out.with_name("made-up"))
        rows = [(f"Say {n}.", f"It is {n * iteration}.", "stop") for n in range(8)]
        spec = TrainSpec(
            model_dir=str(start),
            output_dir=str(out),
            epochs=3,
            batch_size=4,
            learning_rate=3e-2,
            max_length=96,
            precision="fp32",
            lora=LORA,
            seed=iteration,
        )
        train(spec, rows=rows, report=lambda metrics, checkpoint: None)
        start = out
    return store


def test_the_adapters_of_all_iterations_are_one(adapted: RunStore, base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    export(Source.open(adapted), tmp_path / "out", say=quiet)
    folder = tmp_path / "out" / "adapter"
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, ADAPTER_CONFIG, "README.md", "SHA256SUMS"}
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["base_model_name_or_path"] == "base-model", "no path of this machine"

    def logits(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.eval()(torch.tensor([[5, 6, 7, 8]])).logits
        return found

    first, trained = (AutoModelForCausalLM.from_pretrained(one) for one in (base, tmp_path / "out" / "model"))
    untrained, expected = logits(first), logits(trained)
    got = logits(PeftModel.from_pretrained(first, str(folder)))
    assert (expected - untrained).abs().max() > 0.1, "the fits changed something"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    half = AutoModelForCausalLM.from_pretrained(base)
    only = logits(PeftModel.from_pretrained(half, adapted.path("iteration-2/checkpoint/model/adapter")))
    assert (only - expected).abs().max() > 1e-2, "the last iteration's alone is not the student"
    card = (folder / "README.md").read_text()
    assert "of rank 8" in card
    assert "| LoRA rank | 4 |" in card
    assert "--max-lora-rank 8" in card


def test_the_last_adapters_alone_where_every_iteration_started_from_the_base_model(
    adapted: RunStore, tmp_path: Path
) -> None:
    shutil.copytree(adapted.root, tmp_path / "run")
    store = RunStore(str(tmp_path / "run"))
    described = dict(store.described())
    described["config"]["imitation"]["start"] = "base"
    store.write_record(layout.RUN, described)
    assert "starts from the base model and trains on all rows so far" in model_card(Source.open(store))
    assert write_adapter(Source.open(store), tmp_path / "a") == 4
    got = load_file(tmp_path / "a" / WEIGHTS)
    last = load_file(store.path("iteration-2/checkpoint/model/adapter/" + WEIGHTS))
    assert got.keys() == last.keys()
    assert all(torch.equal(got[name], last[name]) for name in last)


def test_adapters_up_to_an_iteration(adapted: RunStore, tmp_path: Path) -> None:
    assert write_adapter(Source.open(adapted, 1), tmp_path / "a") == 4
    own = load_file(adapted.path(f"iteration-1/checkpoint/model/adapter/{WEIGHTS}"))
    found = load_file(tmp_path / "a" / WEIGHTS)
    assert own.keys() == found.keys()
    assert all(torch.equal(own[name], found[name]) for name in own)


def test_adapters_that_were_not_kept(base: Path, tmp_path: Path) -> None:
    lora = {"max_length": 256, "lora": LORA.model_dump()}
    store = make_run(str(tmp_path / "run"), base, imitation=lora)
    with pytest.raises(DataError, match="iteration 1 has no adapters"):
        write_adapter(Source.open(store), tmp_path / "a")
    store.write_json(f"iteration-1/checkpoint/model/adapter/{ADAPTER_CONFIG}", {"r": 4, "lora_alpha": 8})
    store.write_bytes(f"iteration-1/checkpoint/model/adapter/{WEIGHTS}", b"cut off")
    with pytest.raises(DataError, match=f"{WEIGHTS}: cannot be read"):
        write_adapter(Source.open(store), tmp_path / "a")
