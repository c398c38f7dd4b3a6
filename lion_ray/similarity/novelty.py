"""An index of known texts that decides whether another text is novel, by ROUGE-L F over tokens (`rouge`).

Invariants:
- The decision is exact: a text is not novel if its F with a known text *exceeds* the threshold, in `rouge_score`'s
  floats.
- A text without tokens is similar to no text, not even itself, as in `rouge_score`: F is 0 and the text is novel.
- Results depend only on the texts and their order. Queries change nothing.
- No comparison that could matter is skipped. A text is a multiset of elements (token, k-th occurrence) in a fixed
  order: the rarest in the initial texts first, preceded by elements added later, the newest first. F > t needs an LCS
  of at least l(m, n), so at least l shared elements, and two multisets that share l elements share one within their
  first m - l + 1 and n - l + 1 (the prefix filter of set-similarity joins; Chaudhuri et al., ICDE 2006). An element at
  a later position leaves fewer elements to share, which bounds the other text's length. Candidates are then filtered
  by signature (a bit for each token's number modulo 64): a bit that only one text has is a token that is not shared,
  and a candidate with too many such bits is dropped. The rest is compared.

Cost (measured by `bench/novelty.py`): a query visits only texts that share one of its rarer elements, so the time grows
with the frequency of these. A text similar to many known ones has all of them as candidates, but the first true
neighbour ends the search. Comparing a text of 10,000 tokens with similar ones costs 10,000 times as much as for one of
ten; texts of very different lengths are not compared. A text of no token or one costs almost nothing.

This module does not know what the texts are, where they are stored, or what happens to a text that is not novel.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from lion_ray.similarity.rouge import f_measure, tokens

_Encoded = str | list[int]
"""One character per token: rapidfuzz compares strings two to three times as fast as lists. A text with a token beyond
the last character is a list of numbers; rapidfuzz can compare both kinds with each other."""
_LAST_CHARACTER = 0x10FFFF
_REPEAT = 32
"""An element is its token's number, plus k - 1 shifted left by this for the k-th occurrence."""
_FLAT = 64
"""The most postings of one element before they are grouped by length."""
_ANY_LENGTH = 2**31
_NEVER = 2**31
_BLOCK = 64
_FEW = 16
"""Up to this many candidates are compared without the signature filter."""
_CHUNK = 256
"""Texts compared at once; a similar one ends the search after its chunk."""

_Postings = dict[int, "array[int] | dict[int, array[int]]"]
Scores = npt.NDArray[np.float64]


class NoveltyIndex:
    """Known texts, and the similarity of another text to them."""

    def __init__(self, texts: Iterable[str] = (), threshold: float = 0.7) -> None:
        """`texts` determine the order of elements; without any, it is the order in which tokens are first added."""
        self.threshold = threshold
        self._vocabulary: dict[str, int] = {}  # from 1 on; 0 stands for any token that no known text has
        self._rank: dict[int, int] = {}
        self._encoded: list[_Encoded] = []
        self._lengths = array("I")
        self._signatures = array("Q")
        self._by_length: dict[int, array[int]] = {}
        # For each element, the texts that have it in their prefix; grouped by length for a frequent element.
        self._postings: _Postings = {}
        self._reaches: dict[int, _Reach] = {}
        frequency: Counter[int] = Counter()
        initial = [self._encode(text, grow=True) for text in texts]
        for encoded in initial:
            frequency.update(_elements(_numbers(encoded)))
        self._rank = {element: rank for rank, element in enumerate(sorted(frequency, key=frequency.__getitem__), 1)}
        for encoded in initial:
            self._add(encoded)

    def __len__(self) -> int:
        return len(self._encoded)

    def add(self, text: str) -> None:
        """Add `text` to the known texts, novel or not."""
        self._add(self._encode(text, grow=True))

    def is_novel(self, text: str) -> bool:
        """Whether no known text has an F above the threshold with `text`."""
        query = self._encode(text)
        m = len(query)
        if self.threshold >= 1 or not m:
            return True
        if self.threshold < 0:
            return not self._encoded
        reach = self._reach(m)
        met = self._met(query, reach)
        encoded = self._encoded
        for start in range(0, len(met), _CHUNK):
            close = process.extract_iter(
                query,
                [encoded[position] for position in met[start : start + _CHUNK]],
                scorer=LCSseq.similarity,
                score_cutoff=reach.least,
            )
            if any(lcs >= self._least_lcs(m, len(known)) for known, lcs, _ in close):
                return False
        return True

    def _met(self, query: _Encoded, reach: _Reach) -> list[int]:
        """The positions of the candidates: texts whose F may be above the threshold."""
        found: list[array[int]] = []
        postings, shortest = self._postings, reach.shortest
        for element, longest in zip(self._ordered(query), reach.longest, strict=False):
            texts = postings.get(element)
            if texts is None:
                continue
            if not isinstance(texts, dict):
                found.append(texts)
            elif longest - shortest > len(texts):
                found += [positions for n, positions in texts.items() if shortest <= n <= longest]
            else:
                for n in range(shortest, longest + 1):
                    if (positions := texts.get(n)) is not None:
                        found.append(positions)
        met = np.frombuffer(b"".join(found), np.uint32)
        if len(met) > _FEW:
            own = np.uint64(_signature(query))
            signatures = np.frombuffer(self._signatures, np.uint64)[met]
            lengths = np.frombuffer(self._lengths, np.uint32)[met].astype(np.int64)
            needed = reach.needed[np.minimum(lengths, len(reach.needed) - 1)]
            enough = np.int64(len(query)) - np.bitwise_count(own & ~signatures) >= needed
            enough &= lengths - np.bitwise_count(signatures & ~own) >= needed
            met = met[enough]
        return sorted(set(met.tolist()))

    def nearest(self, text: str, k: int = 10) -> list[tuple[int, float]]:
        """The `k` closest known texts: (position in the order of adding, F), best first, then in order of adding.

        Compares with every text that could be among them.
        """
        query = self._encode(text)
        m = len(query)
        best: list[tuple[int, float]] = []
        for n, bound in self._lengths_by_bound(m):
            # Equal bounds are still compared: an equal score with an earlier position goes first.
            if len(best) == k and (k == 0 or bound < best[-1][1]):
                break
            positions = self._by_length[n]
            known = [self._encoded[position] for position in positions]
            scored = process.extract_iter(query, known, scorer=LCSseq.similarity)
            best += [(positions[index], f_measure(lcs, m, n)) for _, lcs, index in scored]
            best = sorted(best, key=lambda found: (-found[1], found[0]))[:k]
        return best

    def scores(self, texts: Sequence[str]) -> Iterator[Scores]:
        """F of each text with every known one: blocks of at most 64 rows, in the order of `texts`, with a column for
        each known text in the order of adding.

        For reports only, because it compares all pairs. A block takes 512 bytes per known text.
        """
        lengths = np.fromiter(map(len, self._encoded), np.float64, len(self._encoded))
        for start in range(0, len(texts), _BLOCK):
            queries = [self._encode(text) for text in texts[start : start + _BLOCK]]
            # Sorted by length, because rapidfuzz compares neighbours of similar length fastest.
            order = sorted(range(len(queries)), key=lambda row: len(queries[row]))
            lcs = np.empty((len(queries), len(self._encoded)))
            lcs[order] = process.cdist(
                [queries[row] for row in order], self._encoded, scorer=LCSseq.similarity, dtype=np.int32
            )
            asked = np.array([[len(query)] for query in queries], np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                # In the order of `f_measure`, so that the floats are the same.
                precision, recall = lcs / lengths, lcs / asked
                yield np.where(lcs == 0, 0.0, 2 * precision * recall / (precision + recall))

    # --- texts as elements

    def _encode(self, text: str, *, grow: bool = False) -> _Encoded:
        """A text's tokens as vocabulary numbers; with `grow` new tokens are added to the vocabulary."""
        vocabulary = self._vocabulary
        if grow:
            numbers = [vocabulary.setdefault(token, len(vocabulary) + 1) for token in tokens(text)]
        else:
            numbers = [vocabulary.get(token, 0) for token in tokens(text)]
        if len(vocabulary) > _LAST_CHARACTER and max(numbers, default=0) > _LAST_CHARACTER:
            return numbers
        return "".join(map(chr, numbers))

    def _ordered(self, encoded: _Encoded) -> list[int]:
        """The elements' ranks, rarest first. An element that the initial texts lack ranks below 1, newer ones lower."""
        rank = self._rank.get
        return sorted([rank(element, -element) for element in _elements(_numbers(encoded))])

    def _add(self, encoded: _Encoded) -> None:
        n, position = len(encoded), len(self._encoded)
        self._encoded.append(encoded)
        self._lengths.append(n)
        self._signatures.append(_signature(encoded))
        self._by_length.setdefault(n, array("I")).append(position)
        if not n or not 0 <= self.threshold < 1:
            return
        postings = self._postings
        for element in self._ordered(encoded)[: len(self._reach(n).longest)]:
            found = postings.get(element)
            if found is None:
                postings[element] = array("I", (position,))
            elif isinstance(found, dict):
                found.setdefault(n, array("I")).append(position)
            else:
                found.append(position)
                if len(found) > _FLAT:
                    postings[element] = self._apart(found)

    def _apart(self, positions: Iterable[int]) -> dict[int, array[int]]:
        by_length: dict[int, array[int]] = {}
        for position in positions:
            by_length.setdefault(self._lengths[position], array("I")).append(position)
        return by_length

    # --- the threshold's bounds on lengths and LCS

    def _reach(self, m: int) -> _Reach:
        found = self._reaches.get(m)
        if found is None:
            found = self._reaches[m] = self._find_reach(m)
        return found

    def _find_reach(self, m: int) -> _Reach:
        if not self._possible(m, m):
            return _Reach(m, m + 1, array("I"), np.array([_NEVER]))
        # F of texts of m and n tokens is at most 2 min(m, n) / (m + n), which decreases on both sides of n = m.
        shortest = longest = m
        while shortest > 1 and self._possible(m, shortest - 1):
            shortest -= 1
        if self.threshold <= 0:
            return _Reach(shortest, 1, array("I", [_ANY_LENGTH] * m), np.array([1]))
        while self._possible(m, longest + 1):
            longest += 1
        needed = np.full(longest + 2, _NEVER)
        needed[shortest : longest + 1] = [self._least_lcs(m, n) for n in range(shortest, longest + 1)]
        least = int(needed[shortest])
        reaches = array("I")
        for place in range(m - least + 1):
            while needed[longest] > m - place:
                longest -= 1
            reaches.append(longest)
        return _Reach(shortest, least, reaches, needed)

    def _possible(self, m: int, n: int) -> bool:
        return f_measure(min(m, n), m, n) > self.threshold

    def _least_lcs(self, m: int, n: int) -> int:
        """The smallest LCS whose F, as rounded, exceeds the threshold; more than both lengths if none does."""
        # F = 2 lcs / (m + n), except for rounding, which is far smaller than the step to the next LCS.
        needed = max(1, int(self.threshold * (m + n) / 2) - 1)
        while needed <= max(m, n) and f_measure(needed, m, n) <= self.threshold:
            needed += 1
        return needed

    def _lengths_by_bound(self, m: int) -> Iterator[tuple[int, float]]:
        """The lengths of the known texts, each with its upper bound of F, the highest bound first."""
        bounds = ((n, f_measure(min(m, n), m, n)) for n in self._by_length)
        yield from sorted(bounds, key=lambda pair: (-pair[1], pair[0]))


@dataclass(frozen=True, slots=True)
class _Reach:
    """The lengths of texts whose F with a text of m tokens can be above the threshold."""

    shortest: int
    least: int
    """The smallest LCS that suffices for any of them."""
    longest: array[int]
    """By an element's position in the prefix: the longest text that may share it and no earlier element."""
    needed: npt.NDArray[np.int64]
    """By the other text's length, the smallest LCS that suffices; the last value also stands for longer texts."""


def _signature(encoded: _Encoded) -> int:
    bits = 0
    for number in _numbers(encoded):
        bits |= 1 << (number & 63)
    return bits


def _numbers(encoded: _Encoded) -> Sequence[int]:
    return [ord(character) for character in encoded] if isinstance(encoded, str) else encoded


def _elements(numbers: Sequence[int]) -> Sequence[int]:
    """The multiset as a set: a token's k-th occurrence is a separate element."""
    if len(set(numbers)) == len(numbers):
        return numbers
    seen: dict[int, int] = {}
    elements = []
    for number in numbers:
        times = seen.get(number, 0)
        seen[number] = times + 1
        elements.append(number + (times << _REPEAT))
    return elements
