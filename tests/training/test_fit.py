"""A fit from rows to a folder, in one process."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from lion_ray.config import ImitationConfig, LoraConfig
from lion_ray.core.errors import ConfigError, DataError, TrainingError
from lion_ray.imitation.training.data import encode, read_rows
from lion_ray.imitation.training.fit import learning_rate, train
from lion_ray.imitation.training.model import load_model
from lion_ray.imitation.training.output import canary_for, evaluate_loss, round_weights
from lion_ray.imitation.training.spec import TrainSpec
from lion_ray.models.prompter import Prompter
from tests.tiny import make_tiny_model
from tests.training.conftest import HELDOUT, ROWS, weights

CPU = torch.device("cpu")


def fit(spec, report=lambda metrics, folder: None, **changes):
    arguments = {"rows": ROWS, "heldout_rows": HELDOUT, "report": report, "device": CPU} | changes
    return train(spec, **arguments)


def test_a_fit_learns_and_says_so(make_spec):
    seen = []
    spec = make_spec(learning_rate=5e-3)
    metrics = fit(spec, lambda step, folder: seen.append((step, folder is not None and folder.is_dir())))
    assert [step["step"] for step, _ in seen] == list(range(1, 13))
    assert [step["checkpoint"] for step, kept in seen if kept] == [5, 10]
    assert seen[0][0]["learning_rate"] == 0.0
    assert metrics["first_loss"] == seen[0][0]["loss"]
    assert metrics["last_loss"] == seen[-1][0]["loss"] < 0.5 * metrics["first_loss"]
    assert metrics["heldout_loss_after"] < 0.7 * metrics["heldout_loss_before"]
    assert metrics["steps"] == 12
    assert metrics["samples"] == 24
    assert metrics["dropped"] == {}
    assert 0.5 < metrics["fill"] <= 1
    samples, _ = encode(ROWS, Prompter.load(spec.model_dir, "chat"), 128, "drop")
    assert metrics["tokens"] == 3 * sum(len(sample.ids) for sample in samples)


def test_a_fit_may_learn_the_instructions_too(make_spec):
    """Besides the answers; the held-out loss is over answers as ever."""
    answers, everything = (fit(make_spec(loss_on, loss_on=loss_on)) for loss_on in ("answer", "all_tokens"))
    assert everything["heldout_loss_before"] == answers["heldout_loss_before"]
    assert everything["heldout_loss_before"] > everything["heldout_loss_after"] != answers["heldout_loss_after"]
    assert everything["tokens"] == answers["tokens"], "all that is computed"


def test_the_folder_is_a_model_in_float32(make_spec, tmp_path):
    spec = make_spec(precision="bf16")
    metrics = fit(spec)
    out = tmp_path / "out"
    assert {t.dtype for t in weights(out).values()} == {torch.float32}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template
    own = Path(spec.model_dir) / "generation_config.json"
    assert (out / own.name).read_bytes() == own.read_bytes()
    samples, _ = encode(HELDOUT, Prompter(tokenizer, "chat"), 128, "drop")
    assert evaluate_loss(model, samples, spec, CPU) == pytest.approx(metrics["heldout_loss_after"], rel=1e-6)
    training = json.loads((out / "training.json").read_text())
    assert training["metrics"] == metrics
    assert TrainSpec.from_json(training["spec"]) == spec
    assert not list(tmp_path.glob("out.*"))


def test_the_loss_is_measured_in_the_serving_type_too(make_spec, tiny):
    metrics = fit(make_spec(serve_dtype="bfloat16"))
    model = load_model(make_spec().output_dir, CPU)
    samples, _ = encode(HELDOUT, Prompter.load(tiny, "chat"), 128, "drop")
    model.load_state_dict({name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()})
    assert metrics["heldout_loss_served"] == pytest.approx(evaluate_loss(model, samples, make_spec(), CPU), rel=1e-6)
    assert metrics["heldout_loss_served"] != metrics["heldout_loss_after"]


def test_the_canary_is_what_the_rounded_model_says(make_spec, tmp_path):
    spec = make_spec(serve_dtype="float16")
    fit(spec)
    canary = json.loads((tmp_path / "out" / "canary.json").read_text())
    assert canary == canary_for(spec.output_dir, spec.canary_prompts, 6, serve_dtype="float16", device=CPU)
    model = load_model(spec.output_dir, CPU).eval()
    round_weights(model, "float16")
    for entry, prompt in zip(canary["prompts"], spec.canary_prompts, strict=True):
        ids = Prompter.load(spec.output_dir, "chat").prompt_ids(prompt)
        assert entry["prompt_ids"] == ids
        assert 1 <= len(entry["tokens"]) == len(entry["logprobs"]) == len(entry["margins"]) <= 6
        with torch.no_grad():
            logits = model(torch.tensor([ids + entry["tokens"]])).logits[0, len(ids) - 1 : -1]
        top = logits.topk(2, dim=-1)
        assert top.indices[:, 0].tolist() == entry["tokens"]
        logprobs = logits.log_softmax(-1).max(-1).values
        torch.testing.assert_close(logprobs, torch.tensor(entry["logprobs"]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            top.values[:, 0] - top.values[:, 1], torch.tensor(entry["margins"]), rtol=1e-3, atol=1e-3
        )


def test_a_canary_ends_with_a_stop_token(make_spec, tmp_path):
    """A model taught to say one short thing says it and stops."""
    spec = make_spec(learning_rate=1e-2, epochs=12, canary_prompts=("Hi",), canary_tokens=40)
    fit(spec, rows=[("Hi", "Yes", "stop")] * 24, heldout_rows=())
    [entry] = json.loads((tmp_path / "out" / "canary.json").read_text())["prompts"]
    assert entry["tokens"] == Prompter.load(spec.model_dir, "chat").completion_ids("Yes", complete=True)


def test_a_finished_fit_is_not_done_again(make_spec):
    first = fit(make_spec())

    def refuse(metrics, folder):
        raise AssertionError("a step was taken")

    assert fit(make_spec(), refuse) == first


def test_micro_batches_do_not_change_the_result(make_spec, tmp_path):
    fit(make_spec("one", micro_batch_rows=1))
    fit(make_spec("many", micro_batch_rows=64, activation_checkpointing=True))
    other = weights(tmp_path / "many")
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=name)


def test_weights_move_less_than_bfloat16_can_tell(make_spec, tmp_path, tiny):
    """Why weights are float32: with so small a rate most updates vanish in bfloat16."""
    fit(make_spec(learning_rate=1e-5, precision="bf16"))
    before, after = weights(tiny), weights(tmp_path / "out")
    moved = torch.cat([(after[n] != before[n]).flatten() for n in before if "layers" in n]).float().mean()
    visible = torch.cat([(after[n].bfloat16() != before[n].bfloat16()).flatten() for n in before if "layers" in n])
    assert moved > 0.9
    assert visible.float().mean() < 0.5


def test_tied_weights_stay_tied(make_spec, tmp_path):
    folder = make_tiny_model(tmp_path / "tied", tied=True)
    fit(make_spec(model_dir=str(folder)))
    assert "lm_head.weight" not in weights(tmp_path / "out")
    model = load_model(tmp_path / "out", CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_adapters_are_merged_and_kept(make_spec, tmp_path, tiny):
    from peft import PeftModel

    lora = LoraConfig(rank=4, alpha=8)
    metrics = fit(make_spec(lora=lora, learning_rate=1e-2))
    assert metrics["last_loss"] < 0.9 * metrics["first_loss"]
    before, after = weights(tiny), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        n for n in before if n.endswith("proj.weight")
    }
    adapted = PeftModel.from_pretrained(load_model(tiny, CPU), str(tmp_path / "out" / "adapter")).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected, got = adapted(ids).logits, load_model(tmp_path / "out", CPU).eval()(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_no_answer_to_learn_from_is_a_data_error(make_spec):
    with pytest.raises(DataError, match="answer cut off"):
        fit(make_spec(), rows=[("Hi", "Yes", "length")])


def test_a_loss_that_is_no_number_stops_the_fit(make_spec, tmp_path):
    with pytest.raises(TrainingError, match="step"):
        fit(make_spec(learning_rate=1e30, warmup_ratio=0.0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("steps", "ratio"), [(141, 0.03), (1219, 0.03), (12, 0.0), (2, 0.5)])
def test_the_learning_rate_is_that_of_transformers(make_spec, steps, ratio):
    spec = make_spec(warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=spec.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, -int(-steps * ratio // 1), steps)
    for step in range(steps):
        assert learning_rate(spec, step, steps) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_a_single_step_is_not_wasted_on_warming_up(make_spec):
    assert learning_rate(make_spec(), 0, 1) == make_spec().learning_rate
    flat = make_spec(schedule="constant", warmup_ratio=0.2)
    assert [learning_rate(flat, step, 10) for step in (0, 1, 2, 9)] == [0.0, 5e-4, 1e-3, 1e-3]


def test_a_spec_goes_through_json_and_pickle(make_spec, tmp_path):
    spec = make_spec(lora=LoraConfig(rank=4, target_modules=("q_proj", "v_proj")))
    spec.save(tmp_path / "spec.json")
    assert TrainSpec.load(tmp_path / "spec.json") == spec == pickle.loads(pickle.dumps(spec))
    (tmp_path / "spec.json").write_text('{"model_dir": "a", "output_dir": "b", "epoch": 3}')
    with pytest.raises(ConfigError, match="epoch"):
        TrainSpec.load(tmp_path / "spec.json")


def test_a_spec_takes_every_setting_of_imitation():
    config = ImitationConfig(epochs=5, lora=LoraConfig(), sharding="none", truncated="keep")
    spec = TrainSpec.of(config, model_dir="m", output_dir="o")
    # Whoever starts the processes reads these; `of_iteration` has made one into the learning rate, and what filters
    # left out never comes here.
    schedulers = {"workers", "use_gpu", "num_cpus", "max_restarts", "later_learning_rate", "filters", "replay", "start"}
    names = {field.name for field in dataclasses.fields(TrainSpec)}
    assert set(ImitationConfig.model_fields) - schedulers <= names
    assert all(getattr(spec, name) == getattr(config, name) for name in set(ImitationConfig.model_fields) & names)


def test_a_fingerprint_covers_what_decides_the_weights(make_spec):
    spec = make_spec()
    for same in ({"sharding": "none"}, {"micro_batch_rows": 9}, {"output_dir": "elsewhere"}):
        assert dataclasses.replace(spec, **same).fingerprint("x") == spec.fingerprint("x")
    for other in ({"seed": 1}, {"learning_rate": 1.0}, {"lora": LoraConfig()}, {"prompt": "instruction"}):
        assert dataclasses.replace(spec, **other).fingerprint("x") != spec.fingerprint("x")
    assert spec.fingerprint("x") != spec.fingerprint("y")


def test_rows_of_a_file_and_rows_in_memory_are_the_same(make_spec):
    assert [row._asdict() for row in read_rows(make_spec().rows)] == [
        {
            **row,
            "finish_reason": "stop",
            "messages": (),
            "columns": {},
            "rejected": None,
            "rejected_finish_reason": "stop",
            "tokens": (),
        }
        for row in ROWS
    ]
