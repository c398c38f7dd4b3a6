"""Decontamination: detects instructions that repeat or quote a question of an evaluation set.

Invariants:
- Either of two rules rejects an instruction: ROUGE-L F above a threshold (`novelty`), or an n-gram of `NGRAM` tokens
  shared with a question (13, as in GPT-3's contamination study: Brown et al. 2020, appendix C).
- An evaluation file that cannot be read, or that holds no question, is an error, because it would protect nothing.

This module does not know pools, runs or models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lion_ray.core.errors import ConfigError, DataError
from lion_ray.data.sources import rows_of
from lion_ray.similarity.novelty import NoveltyIndex
from lion_ray.similarity.rouge import tokens

NGRAM = 13
SIMILAR = "too similar to an evaluation question"
QUOTES = f"shares {NGRAM} words in a row with an evaluation question"

_KEYS = ("instruction", "prompt", "question", "text", "input", "passage", "problem", "turns")
"""Keys under which evaluation sets keep their questions."""
_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")


class EvaluationSet:
    """Questions that training rows must not resemble."""

    def __init__(self, questions: Iterable[str] = (), *, threshold: float = 0.7) -> None:
        questions = list(dict.fromkeys(questions))
        self._similar = NoveltyIndex(questions, threshold)
        self._vocabulary: dict[str, int] = {}
        grams: set[int] = set()
        for question in questions:
            words = [self._vocabulary.setdefault(token, len(self._vocabulary)) for token in tokens(question)]
            grams.update(_grams(words))
        # An array takes 8 bytes per n-gram, a set ten times as much, and evaluation sets have millions of n-grams.
        self._grams = np.array(sorted(grams), np.int64)

    def __len__(self) -> int:
        return len(self._similar)

    def rejects(self, text: str) -> str | None:
        """Why `text` must not be trained on: `SIMILAR` or `QUOTES`. Returns None if it may be."""
        if not len(self._similar):
            return None
        if not self._similar.is_novel(text):
            return SIMILAR
        # A word that no question has cannot be part of a shared n-gram.
        grams = np.array(list(_grams([self._vocabulary.get(token) for token in tokens(text)])), np.int64)
        at = np.searchsorted(self._grams, grams)
        known = at < len(self._grams)
        return QUOTES if (self._grams[at[known]] == grams[known]).any() else None


def _grams(words: Sequence[int | None]) -> Iterator[int]:
    """The hash of each n-gram of `NGRAM` known words; hashes of numbers are the same in every process."""
    for start in range(len(words) - NGRAM + 1):
        gram = tuple(words[start : start + NGRAM])
        if None not in gram:
            yield hash(gram)


def read_questions(sources: Iterable[str], base_dir: Path) -> list[str]:
    """The questions of evaluation sets: files, folders of files, or ``hf:NAME[:SPLIT]``; paths relative to `base_dir`.

    A row's question is any of its instruction, prompt, question, text, input, passage, problem and turns. A .json file
    holds a list of rows, or an object with such lists (BIG-bench's ``examples``).

    Raises ConfigError if a source is missing, DataError if one cannot be read or has no question.
    """
    return [question for source in sources for name in _files(source, base_dir) for question in _read(name, base_dir)]


def _files(source: str, base_dir: Path) -> list[str]:
    folder = base_dir / source
    if source.startswith("hf:") or not folder.is_dir():
        return [source]
    found = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(_SUFFIXES))
    if not found:
        raise ConfigError(f"{source}: no {', '.join(_SUFFIXES)} file in this folder; check data.decontaminate")
    return [str(Path(source) / path.relative_to(folder)) for path in found]


def _read(source: str, base_dir: Path) -> list[str]:
    found: list[str] = []
    for where, value in _rows(source, base_dir):
        if not isinstance(value, dict):
            raise DataError(f"{where}: not a JSON object; correct the row, or leave the file out of data.decontaminate")
        found += _questions(value)
    if not found:
        raise DataError(f"{source}: no row has any of {', '.join(_KEYS)}; rename the key that holds the question")
    return found


def _rows(source: str, base_dir: Path) -> Iterator[tuple[str, Any]]:
    path = base_dir / source
    if path.name.lower().endswith(".json") and path.is_file():
        try:
            whole = json.loads(path.read_bytes())
        except ValueError:
            whole = None  # `rows_of` reports where the file is broken
        if isinstance(whole, dict):
            for key, rows in whole.items():
                if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                    yield from ((f"{source}: {key}, row {number}", row) for number, row in enumerate(rows, start=1))
            return
    for row in rows_of(source, base_dir):
        if row.problem is not None:
            raise DataError(f"{row.where}: {row.problem}; correct the row, or leave the file out of data.decontaminate")
        yield row.where, row.value


def _questions(row: dict[str, Any]) -> Iterator[str]:
    for key in _KEYS:
        value = row.get(key)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text
