"""From rows to batches of token ids.

Invariants:
- Every row becomes a sample or is counted under the reason for which it was dropped; nothing is lost silently.
- A sample ends with the end token if and only if its answer is complete. An answer is cut off if its finish reason says
  so, or if it does not fit into the maximum length.
- The order of samples depends on (seed, epoch) alone. A step takes `batch_size` samples, whatever the packing.
- Packing changes no loss and no gradient: it only decides in which row of a batch a sample lies.

This module does not know models or devices.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from lion_ray.config.imitation import LossOn
from lion_ray.core.errors import DataError
from lion_ray.core.records import Message, derive_seed
from lion_ray.imitation.filters import CUT_OFF, EMPTY_ANSWER, AnsweredRow, CutOff, Empty
from lion_ray.models.prompter import Prompter

EMPTY_PROMPT = "empty prompt"
PROMPT_TOO_LONG = "prompt too long"
REFERENCE = "reference log-probabilities"
"""The column of a pair with the log-probabilities of both answers before the fit (`reference`)."""


class Row(NamedTuple):
    """An instruction and an answer to learn. `finish_reason` None means complete."""

    instruction: str
    answer: str
    finish_reason: str | None = "stop"
    messages: Sequence[Message] = ()
    """The whole conversation, if it is more than the instruction."""
    columns: Mapping[str, Any] = {}
    """Further columns that an objective needs, by name."""
    rejected: str | None = None
    """A worse answer, for an objective that compares two."""
    rejected_finish_reason: str | None = "stop"
    tokens: Sequence[int] = ()
    """The answer's tokens as the student sampled them, with the end token if there was one; else made of the text."""


AnyRow = Mapping[str, Any] | Sequence[Any]
"""A row as callers may pass it: a mapping with Row's names, or its fields in order."""


class Sample(NamedTuple):
    """Token ids of prompt and answer. Labels are on the answer (from index `prompt` on) and on `spans`."""

    ids: list[int]
    prompt: int
    columns: Mapping[str, Any] = {}
    """Columns that an objective needs besides the tokens, by name."""
    spans: tuple[tuple[int, int], ...] = ()
    """Parts of the prompt that carry labels too: (begin, end) before `prompt`, in order."""
    rejected: Sample | None = None
    """For a pair: the same prompt with the worse answer. Both lie in one packed row."""

    @property
    def size(self) -> int:
        """The number of tokens, including those of the worse answer."""
        return len(self.ids) + (len(self.rejected.ids) if self.rejected is not None else 0)

    @property
    def labels(self) -> list[int]:
        """The indices of the tokens that carry labels, in order."""
        return [i for begin, end in (*self.spans, (self.prompt, len(self.ids))) for i in range(begin, end)]

    @property
    def labelled(self) -> int:
        return len(self.ids) - self.prompt + sum(end - begin for begin, end in self.spans)


@dataclass(frozen=True)
class Batch:
    """Packed rows as tensors: B rows of L positions, N of them labelled."""

    input_ids: torch.Tensor
    """[B, L]; padding is 0."""
    position_ids: torch.Tensor
    """[B, L]; restarts at 0 with every sample, so that the model can separate samples, and with the padding."""
    positions: torch.Tensor
    """[N]: indices into the flattened [B * L] whose next token carries a label."""
    targets: torch.Tensor
    """[N]: those next tokens."""
    sample: torch.Tensor
    """[N]: for each target, the number of its sample, in the batch's order."""
    rejected: torch.Tensor
    """[N]: 1 for a token of a pair's worse answer, else 0."""
    columns: list[Mapping[str, Any]] = field(default_factory=list)
    """For each sample, the columns that the objective requested."""
    starts: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int32))
    """Where each sample, and each row's padding, begins in the flattened [B * L]; then B * L."""
    longest: int = 0
    """The length of the longest of these."""

    def to(self, device: torch.device) -> Batch:
        names = ("input_ids", "position_ids", "positions", "targets", "sample", "rejected", "starts")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a JSON Lines file. Raises DataError with file and line if a row cannot be read."""
    rows = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(as_row(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                message = f"{path}, line {number}: not an object with instruction and answer"
                raise DataError(message) from error
    return rows


def as_row(row: AnyRow) -> Row:
    """A tuple or a mapping as a Row. Raises KeyError or TypeError if a text is missing."""
    if isinstance(row, Mapping):
        others = {name: value for name, value in row.items() if name not in Row._fields}
        messages = tuple(row.get("messages") or ())
        worse = (row.get("rejected"), row.get("rejected_finish_reason", "stop"))
        tokens = tuple(row.get("tokens") or ())
        row = (row["instruction"], row["answer"], row.get("finish_reason", "stop"), messages, others, *worse, tokens)
    result = Row(*row)
    if not isinstance(result.instruction, str) or not isinstance(result.answer, str):
        raise TypeError("instruction and answer must be strings")
    return result


def encode(
    rows: Iterable[AnyRow],
    prompter: Prompter,
    max_length: int,
    truncated: Literal["drop", "keep"],
    loss_on: LossOn = "answer",
) -> tuple[list[Sample], dict[str, int]]:
    """Samples of at most `max_length` tokens, in the order of `rows`, and the number of dropped rows by reason.

    `loss_on`: whether only the answer carries labels, or the assistant's earlier turns too, or the whole prompt.
    """
    samples, dropped = [], Counter[str]()
    for row in map(as_row, rows):
        sample = _encode_row(row, prompter, max_length, truncated)
        if isinstance(sample, Sample) and row.rejected is not None:
            sample = _with_rejected(sample, row, prompter, max_length)
        if isinstance(sample, Sample) and loss_on != "assistant_turns":
            # The first token has none before it from which it could be predicted.
            sample = sample._replace(spans=((1, sample.prompt),) if loss_on == "all_tokens" else ())
        if isinstance(sample, str):
            dropped[sample] += 1
        else:
            samples.append(sample)
    return samples, dict(dropped)


def _encode_row(row: Row, prompter: Prompter, max_length: int, truncated: str) -> Sample | str:
    as_text = AnsweredRow("", row.instruction, row.answer, finish_reason=row.finish_reason)
    if not row.tokens and (reason := Empty().reason(as_text)) is not None:
        return reason
    prompt, spans = prompter.conversation_ids(row.instruction, row.messages)
    if not prompt:
        return EMPTY_PROMPT  # the first token needs a token before it
    if len(prompt) >= max_length:
        return PROMPT_TOO_LONG
    complete = CutOff().reason(as_text) is None
    answer = list(row.tokens) or prompter.completion_ids(row.answer, complete=complete)
    if not answer:
        return EMPTY_ANSWER
    room = max_length - len(prompt)
    if truncated == "drop" and (not complete or len(answer) > room):
        return CUT_OFF
    # Truncation also removes the end token.
    return Sample(prompt + answer[:room], len(prompt), row.columns, tuple(spans))


def _with_rejected(sample: Sample, row: Row, prompter: Prompter, max_length: int) -> Sample | str:
    """The pair; or why its worse answer cannot be used. A cut-off one can, because its end token is not trained on."""
    assert row.rejected is not None
    other = row._replace(answer=row.rejected, finish_reason=row.rejected_finish_reason, rejected=None)
    worse = _encode_row(other, prompter, max_length, "keep")
    if isinstance(worse, str):
        return f"rejected answer: {worse}"
    # Earlier turns are the same in both: they carry labels once.
    return sample._replace(rejected=worse._replace(columns={}, spans=()))


def digest(samples: Iterable[Sample]) -> str:
    """A hex digest that identifies these samples in this order."""
    state = hashlib.sha256()
    for sample in samples:
        more = [place for span in sample.spans for place in span]  # none in a row of a single turn
        state.update(array("q", [len(sample.ids), sample.prompt, *sample.ids, *more]).tobytes())
        if sample.rejected is not None:
            state.update(array("q", [len(sample.rejected.ids), *sample.rejected.ids]).tobytes())
    return state.hexdigest()[:16]


def count_steps(n_samples: int, epochs: int, batch_size: int) -> int:
    """Optimizer steps of a fit. A step may span two epochs, as in the paper's count."""
    return -(-n_samples * epochs // batch_size)


def step_batches(n_samples: int, epochs: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """The sample indices of each optimizer step, from step `start` on; only the last step may be smaller."""
    batch: list[int] = []
    step = 0
    for epoch in range(epochs):
        order = list(range(n_samples))
        random.Random(derive_seed(seed, "epoch", epoch)).shuffle(order)
        for index in order:
            batch.append(index)
            if len(batch) == batch_size:
                if step >= start:
                    yield batch
                batch, step = [], step + 1
    if batch and step >= start:
        yield batch


def pack(samples: Sequence[Sample], max_length: int) -> list[list[Sample]]:
    """Pack samples into rows of at most `max_length` tokens: first fit, longest sample first.

    A pair that is longer than that gets a row of its own.

    Minimises the number of rows, then the length of the longest row, since a batch is padded to it.
    """
    ordered = sorted(samples, key=lambda sample: -sample.size)
    max_length = max([max_length, *(sample.size for sample in ordered[:1])])
    rows = _first_fit(ordered, max_length)
    if not rows:
        return rows
    # No packing is shorter than this. The search may miss the optimum, because first fit is a heuristic.
    shortest = max(ordered[0].size, -(-sum(sample.size for sample in ordered) // len(rows)))
    longest = max_length
    while shortest < longest:
        tried = (shortest + longest) // 2
        found = _first_fit(ordered, tried)
        if len(found) <= len(rows):
            rows, longest = found, tried
        else:
            shortest = tried + 1
    return rows


def _first_fit(ordered: Sequence[Sample], length: int) -> list[list[Sample]]:
    rows: list[list[Sample]] = []
    room: list[int] = []
    for sample in ordered:
        size = sample.size
        row = next((i for i, left in enumerate(room) if left >= size), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(length)
        rows[row].append(sample)
        room[row] -= size
    return rows


def collate(rows: Sequence[Sequence[Sample]]) -> Batch:
    """One batch of packed rows, padded to the longest. Without rows: a batch of one padding token."""
    width = max((sum(sample.size for sample in row) for row in rows), default=1)
    ids: list[list[int]] = []
    places: list[list[int]] = []
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    worse: list[int] = []
    columns: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows or [[]]):
        row_ids: list[int] = []
        row_places: list[int] = []
        for sample in row:
            for rejected, answer in enumerate((sample, sample.rejected)):
                if answer is None:
                    continue
                offset = number * width + len(row_ids)
                labels = answer.labels
                positions.extend(offset + place - 1 for place in labels)
                targets.extend(answer.ids[place] for place in labels)
                owners.extend([len(columns)] * len(labels))
                worse.extend([rejected] * len(labels))
                row_ids += answer.ids
                row_places += range(len(answer.ids))
            columns.append(sample.columns)
        padding = width - len(row_ids)
        ids.append(row_ids + [0] * padding)
        places.append(row_places + list(range(padding)))
    position_ids = torch.tensor(places, dtype=torch.long)
    flat = position_ids.flatten()
    starts = torch.cat([(flat == 0).nonzero().flatten(), torch.tensor([len(flat)])])
    return Batch(
        torch.tensor(ids, dtype=torch.long),
        position_ids,
        torch.tensor(positions, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(owners, dtype=torch.long),
        torch.tensor(worse, dtype=torch.long),
        columns,
        starts.to(torch.int32),
        int(starts.diff().max()),
    )
