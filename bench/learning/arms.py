"""The arms: alternative uses of the same number of teacher answers, as changes of one configuration.

A new arm is one entry of `ARMS`, for example ``Arm("preference", "…", ("imitation.objective={type: …}",))``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.learning.endpoint import Nature

VERSION = 1
"""Version of the tasks and the configuration below; increase it if either changes, so that old results are not used."""
STUDENT = "bundled:smollm2-135m-instruct"
STUDENT_PROMPT = "Task: {instruction}\nAnswer:\n"


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of an arm's run."""

    seed_rows: int = 80
    new_rows: int = 80
    """Per iteration."""
    iterations: int = 1
    epochs: int = 3
    batch_size: int = 8
    heldout_per_family: int = 20

    @property
    def answers(self) -> int:
        """Teacher answers to training rows."""
        return self.seed_rows + self.iterations * self.new_rows

    @property
    def epochs_alone(self) -> int:
        """Epochs over the seed rows alone with as many optimizer steps as all the imitations of another arm."""
        steps = -(-self.seed_rows // self.batch_size) + self.iterations * -(-self.new_rows // self.batch_size)
        return round(self.epochs * steps / -(-self.seed_rows // self.batch_size))

    def numbers(self) -> dict[str, int]:
        """The values of placeholders in an arm's changes."""
        return {"new": self.new_rows, "half": self.new_rows // 2, "epochs_alone": self.epochs_alone}


FULL = Size()
HALF = Size(seed_rows=40, new_rows=40)
"""Half the teacher's answers, and so half the optimizer steps."""
QUICK = Size(seed_rows=16, new_rows=8, epochs=1, heldout_per_family=1)


@dataclass(frozen=True, slots=True)
class Arm:
    """One use of the teacher's answers."""

    name: str
    about: str
    changes: tuple[str, ...]
    """Configuration overrides, as on the command line, with the placeholders of `Size.numbers`."""
    families: str = "seed"
    """See `Nature.families`."""


_BOTH = ("generation.hard={half}", "generation.easy={half}")
_NO_JUDGE = ("discrimination.tau=100", "generation.hard=0", "generation.easy={new}")
"""No row is hard, so the parents of new rows are drawn from all rows, and the judge has no effect."""


def _rounds(rounds: int, prompts: int, samples: int, steps: int) -> tuple[str, ...]:
    sizes = {"rounds": rounds, "prompts": prompts, "samples": samples, "steps": steps}
    return (
        *(f"on_policy.{name}={number}" for name, number in sizes.items()),
        "on_policy.learning_rate=2e-5",
        "rubricator.endpoint=world",
        "verifier.endpoint=world",
    )


_ROUNDS = _rounds(6, 20, 6, 2)
_LONG_ROUNDS = (*_rounds(8, 40, 8, 4), "on_policy.reward.type=rubric", "on_policy.reward.leave_out=fulfilled")
_DISCRIMINATOR = ("on_policy.reward.type=discriminator", "on_policy.reward.learning_rate=2e-5")
_ROUNDS_ALONE = ("imitation.later_learning_rate=1e-9",)
"""The second imitation changes nothing, so that its rows are taught by the rounds after it alone."""
_REPLAY = "imitation.replay=1"
_ANEW = "imitation.start=base"

ARMS = (
    Arm("seed_only", "only the seed rows, as many steps", ("iterations=0", "imitation.epochs={epochs_alone}")),
    Arm("random_rows", "new rows of random families", _NO_JUDGE, families="random"),
    Arm("unjudged", "new rows like any known rows (Self-Instruct)", _NO_JUDGE),
    Arm("lion", "half like hard rows, half like easy ones; tau 1", _BOTH),
    Arm("hard_only", "new rows like hard ones", ("generation.hard={new}", "generation.easy=0")),
    Arm("easy_only", "new rows like easy ones", ("generation.hard=0", "generation.easy={new}")),
    Arm("lion_tau_0.5", "as lion; tau 0.5", (*_BOTH, "discrimination.tau=0.5")),
    Arm("lion_tau_2", "as lion; tau 2", (*_BOTH, "discrimination.tau=2")),
    Arm("lion_replay", "as lion, with one earlier row per new row", (*_BOTH, _REPLAY)),
    Arm("random_replay", "as random_rows, with one earlier row per new row", (*_NO_JUDGE, _REPLAY), families="random"),
    Arm("lion_anew", "as lion, from the base model on all rows", (*_BOTH, _ANEW)),
    Arm("random_anew", "as random_rows, from the base model on all rows", (*_NO_JUDGE, _ANEW), families="random"),
    Arm(
        "random_all_tokens",
        "as random_rows, learning the instructions' words too",
        (*_NO_JUDGE, "imitation.loss_on=all_tokens"),
        families="random",
    ),
    Arm(
        "hard_anew",
        "as hard_only, from the base model on all rows",
        ("generation.hard={new}", "generation.easy=0", _ANEW),
    ),
    Arm("rubric", "the seed rows alone, then on-policy rounds on them", ("iterations=0", *_ROUNDS)),
    Arm("rubric_long", "as rubric, in rounds of 320 answers and 4 steps", ("iterations=0", *_LONG_ROUNDS)),
    Arm(
        "rubric_new",
        "the seed rows, and rounds on them; then on-policy rounds on new rows of random families",
        (*_NO_JUDGE, *_ROUNDS, *_ROUNDS_ALONE),
        families="random",
    ),
    Arm("discriminator", "as rubric, rewarded by a discriminator", ("iterations=0", *_ROUNDS, *_DISCRIMINATOR)),
    Arm("preference", "as lion, and pairs from its verdicts", (*_BOTH, "imitation.objective.type=preference")),
)
BY_NAME = {arm.name: arm for arm in ARMS}

AFTER_STEM = (
    *("discrimination.", "generation.", "generator.", "iterations="),
    *("imitation.later_learning_rate=", "imitation.replay=", "imitation.start=", "imitation.objective.type=preference"),
    *("on_policy.", "rubricator.", "verifier."),
)
"""Changes that have an effect only after the first student has answered."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the experiment: an arm, a seed, and the roles' error and noise."""

    arm: str
    seed: int = 0
    error: float = 0.0
    noise: float = 0.0
    size: Size = FULL

    @property
    def name(self) -> str:
        """The name of its run and its file; ends with a hash of everything that its result depends on."""
        what = (VERSION, asdict(self), self.overrides, asdict(self.nature), STUDENT_PROMPT, config(self, ""))
        whole = json.dumps(what, sort_keys=True)
        digest = hashlib.sha256(whole.encode()).hexdigest()[:6]
        return f"{self.arm}-seed{self.seed}-error{self.error:g}-noise{self.noise:g}-{digest}"

    @property
    def stem(self) -> str:
        """A hash of everything that the first imitation and the student's answers after it depend on."""
        early = [change for change in self.overrides if not change.startswith(AFTER_STEM)]
        what = (VERSION, self.seed, self.error, early, STUDENT_PROMPT, config(replace(self, noise=0.0), ""))
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def has_rounds(self) -> bool:
        """Whether on-policy rounds follow its imitations."""
        return any(change.startswith("on_policy.") for change in self.overrides)

    @property
    def nature(self) -> Nature:
        return Nature(self.seed, self.error, self.noise, BY_NAME[self.arm].families)

    @property
    def overrides(self) -> list[str]:
        numbers = {f"{{{name}}}": str(number) for name, number in self.size.numbers().items()}
        return [_filled(change, numbers) for change in BY_NAME[self.arm].changes]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Cell:
        return cls(**values | {"size": Size(**values["size"])})


def _filled(change: str, numbers: dict[str, str]) -> str:
    for name, number in numbers.items():
        change = change.replace(name, number)
    return change


def config(cell: Cell, base_url: str) -> dict[str, Any]:
    """The configuration that all arms share; `experiment` writes its files."""
    size = cell.size
    return {
        "seed": cell.seed,
        "iterations": size.iterations,
        "data": {
            "pool": f"pool-{cell.seed}-{size.seed_rows}.jsonl",
            "heldout": f"heldout-{size.heldout_per_family}.jsonl",
        },
        "endpoints": {
            "world": {
                "model": "world",
                "base_url": base_url or "http://127.0.0.1:1/v1",
                "api_key_env": None,
                "max_concurrency": 32,
                "send_seed": True,  # the generator's next instance depends on it
            }
        },
        "teacher": {"endpoint": "world", "temperature": 0, "max_tokens": 64},
        "referee": {"endpoint": "world", "canary_pairs": 0},  # the canary pairs are not synthetic tasks
        "generator": {"endpoint": "world", "min_tokens": 64},
        "student": {
            "model": STUDENT,
            "prompt": "student.txt",
            "temperature": 0,
            "dtype": "float32",
            "max_tokens": 32,
            "max_model_len": 256,
            "kv_cache_gib": 0.1,
        },
        "imitation": {
            "epochs": size.epochs,
            "batch_size": size.batch_size,
            "max_length": 256,
            "micro_batch_rows": 2,
            "learning_rate": 2e-4,
        },
        "discrimination": {"judge_heldout": "never"},
        "evaluation": {"checks": [{"type": "exact", "ignore_whitespace": True}]},
        # Tasks of a family differ in a word or two, so only near duplicates are rejected.
        "generation": {"hard": 0, "easy": size.new_rows, "max_similarity": 0.95},
        "placement": "dedicated",
        "shard_rows": 64,
    }
