"""A discriminator: the student's body with a scalar head, trained to tell the teacher's answers from the student's.

Source: GAD (arXiv 2511.10643). The loss is Bradley and Terry's, -log sigmoid(D(x, y_T) - D(x, y_S)), for the teacher's
answer y_T and each of the student's own answers y_S to the same instruction x.

Invariants:
- Pairs of two equal answers are left out: a student that was trained on the teacher's answers gives many.
- It is trained on each round's answers before it scores them: a discriminator that stays as it is gets deceived.
- All randomness derives from the seed, so a repeated training ends with the same bits in one process.
- It is written completely or not at all, as safetensors.

This module does not know Ray; it runs in one process.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lion_ray.core import layout
from lion_ray.core.errors import ModelError, TrainingError, first_line
from lion_ray.core.records import derive_seed
from lion_ray.imitation.training.data import Sample
from lion_ray.imitation.training.model import load_model

WEIGHTS, ABOUT = layout.DISCRIMINATOR, "discriminator.json"
MAX_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a discriminator is trained on one round's answers."""

    learning_rate: float
    epochs: int
    batch: int
    """Instructions in an optimizer step."""
    seed: int


class Discriminator(nn.Module):
    """A score for each sequence: a linear head on the last token's last hidden state."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)  # every answer starts with the same score
        nn.init.zeros_(self.head.bias)

    def forward(self, samples: Sequence[Sample], device: torch.device) -> torch.Tensor:
        """[samples]: their scores."""
        longest = max(len(one.ids) for one in samples)
        ids = torch.tensor([one.ids + [0] * (longest - len(one.ids)) for one in samples], device=device)
        mask = torch.tensor([[1] * len(one.ids) + [0] * (longest - len(one.ids)) for one in samples], device=device)
        hidden = self.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = torch.tensor([len(one.ids) - 1 for one in samples], device=device)
        scores: torch.Tensor = self.head(hidden[torch.arange(len(samples), device=device), last].float()).squeeze(-1)
        return scores


def load(model_dir: Path, trained: Path | None, device: torch.device) -> Discriminator:
    """The discriminator in `trained`; without one, the model in `model_dir` with a head that scores 0.

    Raises ModelError if one of them cannot be loaded.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model: Any = load_model(model_dir, device)
    found = Discriminator(model.base_model, model.config.get_text_config().hidden_size).to(device)
    if trained is not None:
        try:
            found.load_state_dict(load_file(trained / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{trained / WEIGHTS}: cannot be read ({first_line(error)})") from None
    return found


def save(discriminator: Discriminator, folder: Path, about: dict[str, Any]) -> None:
    """Write it into the empty or missing `folder`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.contiguous() for name, one in discriminator.state_dict().items()}, folder / WEIGHTS)
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


Groups = Sequence[tuple[Sample, Sequence[Sample]]]
"""For each instruction: the teacher's answer, and the student's."""


def scored(discriminator: Discriminator, samples: Sequence[Sample], device: torch.device) -> torch.Tensor:
    """[samples]: their scores; equal samples, of which a trained student gives many, are computed once."""
    found: dict[tuple[int, ...], Sample] = {}
    for one in samples:
        found.setdefault(tuple(one.ids), one)
    order = {ids: place for place, ids in enumerate(found)}
    places = torch.tensor([order[tuple(one.ids)] for one in samples], device=device)
    scores: torch.Tensor = discriminator(list(found.values()), device)[places]
    return scores


def unlike(teacher: Sample, students: Sequence[Sample]) -> list[Sample]:
    """The student's answers that differ from the teacher's: nothing tells the others apart."""
    return [one for one in students if one.ids != teacher.ids]


def loss(discriminator: Discriminator, teacher: Sample, students: Sequence[Sample], device: torch.device) -> Any:
    """The mean of one instruction's pairs, a scalar with gradient, and how many are in the right order."""
    scores = scored(discriminator, [teacher, *students], device)
    lead = scores[0] - scores[1:]
    return -F.logsigmoid(lead).mean(), int((lead.detach() > 0).sum())


def train(discriminator: Discriminator, groups: Groups, settings: Settings, device: torch.device) -> dict[str, Any]:
    """Train in place, on the student's answers that differ from the teacher's.

    Returns the steps, the number of `pairs`, the last epoch's mean loss and its share of pairs in the right order (None
    without pairs). Raises TrainingError if the loss is not finite.
    """
    telling = [(teacher, own) for teacher, students in groups if (own := unlike(teacher, students))]
    pairs = sum(len(own) for _, own in telling)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    discriminator.train()
    steps = 0
    found: dict[str, float | None] = {"loss": None, "pairs_right": None}
    for epoch in range(settings.epochs if telling else 0):
        order = list(range(len(telling)))
        random.Random(derive_seed(settings.seed, "discriminator", epoch)).shuffle(order)
        total, in_order = 0.0, 0
        for start in range(0, len(order), settings.batch):
            torch.manual_seed(derive_seed(settings.seed, "discriminator step", steps))
            batch = order[start : start + settings.batch]
            for place in batch:  # one instruction at a time: a group is as large as a micro-batch
                value, right = loss(discriminator, *telling[place], device)
                if not torch.isfinite(value):
                    raise TrainingError(f"discriminator, step {steps + 1}: the loss is {float(value)}")
                (value / len(batch)).backward()
                total += float(value.detach())
                in_order += right
            torch.nn.utils.clip_grad_norm_(discriminator.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        found = {"loss": total / len(order), "pairs_right": in_order / pairs}
    return {"steps": steps, "pairs": pairs, **found}


@torch.no_grad()
def score(discriminator: Discriminator, groups: Groups, device: torch.device) -> list[list[float]]:
    """The scores of the student's answers, group by group."""
    discriminator.eval()
    return [scored(discriminator, students, device).tolist() for _, students in groups]
