"""Whether a text says something that no known text says: ROUGE-L F over tokens.

Invariants:
- The decision is exact: F is computed in the order and precision of the `rouge_score` package, P = lcs/n, R = lcs/m,
  F = 2PR/(P+R), and a text is known where F *exceeds* the threshold. Rounding decides the many ties at exactly 0.7.
- On ASCII texts the tokens are `rouge_score`'s (runs of a-z and 0-9, lower case, no stemmer). On other texts it would
  drop every other letter, so here they are kept: words where a script puts spaces between words, single characters
  where it does not (Chinese, Japanese, Thai, Lao, Khmer, Burmese).
- A text without tokens resembles nothing, itself included, as in `rouge_score`: F is 0 and the text is novel.
- Answers depend on the texts and their order alone.
- No comparison that could decide is left out. A text is a multiset of elements (token, k-th occurrence) in one fixed
  order, rarest in the initial texts first. F > t needs an LCS of at least l(m, n), so at least l shared elements, and
  two multisets that share l elements share one within their first m - l + 1 and n - l + 1 (the prefix filter of
  set-similarity joins; Chaudhuri et al., ICDE 2006). What follows two shared elements bounds the rest.

This module does not know what the texts are, where they are kept or what becomes of a text that is not novel.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from rapidfuzz import process
from rapidfuzz.distance import LCSseq

_ASCII_TOKEN = re.compile(r"[a-z0-9]+")

_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007"  # 々〆〇
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "]"
)

RANKS = 2**21
"""More than there are characters."""


def tokens(text: str) -> list[str]:
    """The units that are compared, in order."""
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    return _unicode_tokens(unicodedata.normalize("NFKC", text).casefold())


def _unicode_tokens(text: str) -> list[str]:
    found: list[str] = []
    # Whether the next letter continues the last token, and whether the next combining mark does.
    in_word = in_character = False
    for character in text:
        if character.isalnum():
            alone = _UNSPACED.match(character) is not None
            if in_word and not alone:
                found[-1] += character
            else:
                found.append(character)
            in_word, in_character = not alone, True
        elif in_character and unicodedata.category(character).startswith("M"):
            # Vowel signs and accents belong to the letter before them.
            found[-1] += character
        else:
            in_word = in_character = False
    return found


def has_unspaced_script(text: str) -> bool:
    """Whether the text has letters of a script that puts no spaces between words."""
    return _UNSPACED.search(text) is not None


def f_measure(lcs: int, m: int, n: int) -> float:
    """ROUGE-L F of texts of m and n tokens with a longest common subsequence of `lcs`, as `rouge_score` rounds it."""
    if lcs == 0:
        return 0.0
    precision, recall = lcs / n, lcs / m
    return 2 * precision * recall / (precision + recall)


class NoveltyIndex:
    """Known texts, and how close another text comes to any of them.

    A query meets only texts with which it shares one of its rarer elements. A pool of near-copies makes every query
    meet all of them. It holds up to 1,114,110 different tokens (texts of 52,000 instructions have some 21,000).
    """

    def __init__(self, texts: Iterable[str] = (), threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._ids: dict[str, str] = {}
        self._rank: dict[str, int] = {}
        """By a token's character: its frequency in the initial texts, and among equals the order of appearance."""
        # A text is a string with one character for each token: rapidfuzz compares strings two to three times as fast as
        # lists of numbers.
        self._encoded: list[str] = []
        self._by_length: dict[int, list[int]] = {}
        # For each element, the texts that have it in their prefix: (number of tokens, place in the prefix, position).
        self._postings: dict[str, list[tuple[int, int, int]]] = {}
        self._least: dict[tuple[int, int], int] = {}
        self._lengths: dict[int, tuple[int, int, int]] = {}
        initial = [self._encode(text) for text in texts]
        frequency = Counter(character for encoded in initial for character in encoded)
        self._rank = {character: count * RANKS + ord(character) for character, count in frequency.items()}
        for encoded in initial:
            self._add(encoded)

    def __len__(self) -> int:
        return len(self._encoded)

    def add(self, text: str) -> None:
        """Make `text` known, novel or not."""
        self._add(self._encode(text))

    def _add(self, encoded: str) -> None:
        n = len(encoded)
        position = len(self._encoded)
        self._encoded.append(encoded)
        self._by_length.setdefault(n, []).append(position)
        for place, element in enumerate(self._prefix(encoded)):
            self._postings.setdefault(element, []).append((n, place, position))

    def is_novel(self, text: str) -> bool:
        """Whether no known text has an F above the threshold with `text`."""
        query = self._encode(text)
        m = len(query)
        if self.threshold >= 1 or not m:
            return True
        if self.threshold < 0:
            return not self._encoded
        shortest, longest, _ = self._bounds(m)
        met: set[int] = set()
        for place, element in enumerate(self._prefix(query)):
            after = m - place - 1
            for n, other, position in self._postings.get(element, ()):
                if not shortest <= n <= longest or position in met:
                    continue
                needed = self._least_lcs(m, n)
                # What is shared from here on, should these be the first elements that the two share.
                if 1 + min(after, n - other - 1) < needed:
                    continue
                met.add(position)
                if LCSseq.similarity(query, self._encoded[position], score_cutoff=needed) >= needed:
                    return False
        return True

    def _prefix(self, encoded: str) -> list[str]:
        """The elements, rarest first, of which two texts above the threshold share one."""
        if not encoded:
            return []
        seen: Counter[str] = Counter()
        elements = []
        for character in encoded:
            seen[character] += 1
            elements.append((self._rank.get(character, ord(character)), seen[character], character))
        elements.sort()
        least = self._bounds(len(encoded))[2]
        return [f"{character}{count}" for _, count, character in elements[: len(encoded) - least + 1]]

    def _bounds(self, m: int) -> tuple[int, int, int]:
        """For a text of m tokens: the lengths that can be above the threshold, and the least LCS with any of them."""
        found = self._lengths.get(m)
        if found is None:
            # F of texts of m and n tokens is at most 2 min(m, n) / (m + n), which falls on both sides of n = m.
            shortest = longest = m
            while shortest > 1 and self._possible(m, shortest - 1):
                shortest -= 1
            while self.threshold > 0 and self._possible(m, longest + 1):
                longest += 1
            if self.threshold <= 0:
                longest = 2**31
            least = self._least_lcs(m, shortest) if self._possible(m, shortest) else m + 1
            found = self._lengths[m] = (shortest, longest, least)
        return found

    def _possible(self, m: int, n: int) -> bool:
        return f_measure(min(m, n), m, n) > self.threshold

    def _least_lcs(self, m: int, n: int) -> int:
        found = self._least.get((m, n))
        if found is None:
            found = self._least[m, n] = self._least_lcs_above_threshold(m, n)
        return found

    def nearest(self, text: str, k: int = 10) -> list[tuple[int, float]]:
        """The `k` closest known texts: (position in the order of adding, F), best first, then in order of adding."""
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

    def _encode(self, text: str) -> str:
        return "".join([self._ids.setdefault(token, chr(len(self._ids) + 1)) for token in tokens(text)])

    def _lengths_by_bound(self, m: int) -> Iterator[tuple[int, float]]:
        """The lengths among the known texts, each with the highest F it allows, the most promising first."""
        bounds = ((n, f_measure(min(m, n), m, n)) for n in self._by_length)
        yield from sorted(bounds, key=lambda pair: (-pair[1], pair[0]))

    def _least_lcs_above_threshold(self, m: int, n: int) -> int:
        """The smallest LCS whose F, as rounded, exceeds the threshold; the caller knows that min(m, n) does."""
        # F = 2 lcs / (m + n) but for rounding, which is far smaller than the step to the next LCS.
        needed = max(1, int(self.threshold * (m + n) / 2) - 1)
        while f_measure(needed, m, n) <= self.threshold:
            needed += 1
        return needed
