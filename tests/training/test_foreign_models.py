"""Models that cannot be trained as they are: damaged or foreign weights, too few positions, and architectures in which
packed samples, or words to come, are seen. Each is one line before the first step; what can be trained goes through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lion_ray.config import ServeConfig
from lion_ray.core.errors import ModelError
from lion_ray.imitation.training.data import Row, collate, encode
from lion_ray.imitation.training.model import LabelledLogits, check_length, check_packing, load_model
from lion_ray.inference.server import ModelServer
from lion_ray.models.completeness import check_weights
from lion_ray.models.prompter import Prompter
from tests.tiny import make_tiny_tokenizer

CPU = torch.device("cpu")
SIZES: Any = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": lambda size: transformers.LlamaConfig(vocab_size=size, intermediate_size=96, **SIZES),
    "gpt2": lambda size: transformers.GPT2Config(vocab_size=size, n_positions=512, n_embd=64, n_layer=2, n_head=2),
    "gptneox": lambda size: transformers.GPTNeoXConfig(vocab_size=size, intermediate_size=96, **SIZES),
    "mixtral": lambda size: transformers.MixtralConfig(
        vocab_size=size, intermediate_size=96, num_key_value_heads=2, num_local_experts=4, **SIZES
    ),
    "opt": lambda size: transformers.OPTConfig(vocab_size=size, ffn_dim=96, word_embed_proj_dim=64, **SIZES),
    "falcon": lambda size: transformers.FalconConfig(vocab_size=size, **SIZES),
    "bert": lambda size: transformers.BertConfig(vocab_size=size, intermediate_size=96, **SIZES),
}


def made(kind: str, folder: Path) -> Path:
    """An untrained model of a kind, with a tokenizer."""
    torch.manual_seed(0)
    tokenizer = make_tiny_tokenizer()
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer().save_pretrained(folder)
    rows = [Row(f"Say number {i}.", "It is " + f"{i} " * (3 + i)) for i in range(6)]
    return encode(rows, Prompter.load(folder, "instruction"), 256, "drop")[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptneox", "mixtral"])
def test_a_model_that_keeps_samples_apart_is_let_through(kind: str, tmp_path: Path, samples: list) -> None:
    model = load_model(made(kind, tmp_path), CPU)
    check_packing(model, samples, CPU)
    check_packing(model, [one._replace(spans=((1, one.prompt),)) for one in samples], CPU)
    logits = LabelledLogits(model.eval())
    with torch.no_grad():
        alone = float(logits.losses(collate([[samples[1]]])).sum())
        after = float(
            logits.losses(collate([[samples[5], samples[1]]])).sum() - logits.losses(collate([[samples[5]]])).sum()
        )
    assert after == pytest.approx(alone, abs=0.002)


@pytest.mark.parametrize(
    ("kind", "why"), [("opt", "see one another"), ("falcon", "see one another"), ("bert", "see one another|causal")]
)
def test_a_model_that_does_not_is_refused_however_little_leaks(
    kind: str, why: str, tmp_path: Path, samples: list
) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        check_packing(load_model(made(kind, tmp_path), CPU), samples, CPU)
    assert "\n" not in str(caught.value)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path, samples: list) -> None:
    """Within a sample, where packing changes nothing: attention without a mask, one sample a row."""

    class LooksAhead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.head = torch.nn.Embedding(512, 8), torch.nn.Linear(8, 512)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.words

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

        def forward(self, input_ids, position_ids, use_cache):
            # Each word is mixed with the next one of its own sample.
            words = self.words(input_ids)
            following = torch.roll(words, -1, 1) * (torch.roll(position_ids, -1, 1) > 0)[..., None]
            return transformers.modeling_outputs.CausalLMOutput(logits=self.head(words + following))

    with pytest.raises(ModelError, match="not a causal language model"):
        check_packing(LooksAhead(), samples, CPU)


def changed(folder: Path, **tensors: torch.Tensor | None) -> None:
    """The model's file with other tensors; None takes one out."""
    found = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def lacks_a_layer(folder: Path) -> None:
    changed(folder, **{n: None for n in load_file(folder / "model.safetensors") if "layers.1." in n})


def holds_nan(folder: Path) -> None:
    changed(folder, **{"model.norm.weight": torch.full((64,), float("nan"))})


def is_cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def is_cut_in_the_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def is_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def is_a_pointer(folder: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n"
    (folder / "model.safetensors").write_text(pointer)


def is_a_web_page(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<!doctype html><title>Sign in</title>")


def configured(folder: Path, **values: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def has_a_layer_more(folder: Path) -> None:
    configured(folder, num_hidden_layers=1)


def has_other_sizes(folder: Path) -> None:
    configured(folder, intermediate_size=128)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lacks_a_layer, r"lack model\.layers\.1\.input_layernorm\.weight and 8 more"),
        (holds_nan, r"model\.norm\.weight contains NaN"),
        (is_cut, "damaged or truncated"),
        (is_cut_in_the_header, "damaged or truncated"),
        (is_empty, "damaged or truncated"),
        (is_a_pointer, "git lfs pull"),
        (is_a_web_page, "is an HTML page"),
        (has_a_layer_more, r"another model: .*layers\.1\..* 1 layers"),
        (has_other_sizes, "model"),
    ],
)
def test_damaged_and_foreign_weights_are_one_line(damage, said: str, llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(folder, CPU)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_positions_are_told_before_the_first_step(tmp_path: Path, samples: list) -> None:
    model = load_model(made("gpt2", tmp_path), CPU)
    check_length(model, samples, 1024)
    model.config.n_positions = 32
    with pytest.raises(ModelError, match=r"imitation\.max_length is 1024, and the model has 32 positions"):
        check_length(model, samples, 1024)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("model.embed_tokens.weight", "its files lack model.embed_tokens.weight, which would be random"),
        ("model.layers.1.self_attn.q_proj.weight", "its files lack model.layers.1.self_attn.q_proj.weight"),
        ("lm_head.weight", "its files lack lm_head.weight"),
    ],
)
async def test_what_vllm_would_serve_from_random_memory_is_refused(
    lost: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """vLLM starts without a word if one of these is missing."""
    folder = made("llama", tmp_path)
    check_weights(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: of for name, of in weights.items() if name != lost}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match=said) as caught:
        check_weights(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    capfd.readouterr()
    serve = ServeConfig(model=str(folder), dtype="float32", max_model_len=128, enforce_eager=True)
    with pytest.raises(ModelError, match=said):
        await ModelServer(serve, str(folder), "lacking").start(print)
    assert capfd.readouterr().out == ""


def test_what_only_vllm_may_know_is_left_to_it(tmp_path: Path) -> None:
    folder = made("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"model_type": "new"}, {"quantization_config": {"quant_method": "awq"}}):
        (folder / "config.json").write_text(json.dumps(config | changes))
        (folder / "model.safetensors").unlink(missing_ok=True)
        check_weights(folder)
    (folder / "config.json").write_text("[")
    check_weights(folder)
