"""Whether a text says something that no known text says: ROUGE-L F over tokens.

Invariants:
- The decision is exact: F is computed in the order and precision of the `rouge_score` package, P = lcs/n, R = lcs/m,
  F = 2PR/(P+R), and a text is known where F *exceeds* the threshold. Rounding decides the many ties at exactly 0.7.
- On ASCII texts the tokens are `rouge_score`'s (runs of a-z and 0-9, lower case, no stemmer). On other texts it would
  drop every other letter, so here they are kept: words where a script puts spaces between words, single characters
  where it does not (Chinese, Japanese, Thai, Lao, Khmer, Burmese).
- A text without tokens resembles nothing, itself included, as in `rouge_score`: F is 0 and the text is novel.
- Answers depend on the texts and their order alone.

This module does not know what the texts are, where they are kept or what becomes of a text that is not novel.
"""

from __future__ import annotations

import re
import unicodedata
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

# Stands for every token of a query that no known text has. Ids start behind it.
_UNKNOWN = "\x00"


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

    One query compares with every known text whose length allows it: about 5 to 10 ms for 52,000 instructions.
    It holds up to 1,114,111 different tokens (texts of 52,000 instructions have some 21,000).
    """

    def __init__(self, texts: Iterable[str] = (), threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._count = 0
        self._ids: dict[str, str] = {}
        # Known texts by their number of tokens, each with its position in the order of adding. A text is a string with
        # one character for each token: rapidfuzz compares strings two to three times as fast as lists of numbers.
        self._encoded: dict[int, list[str]] = {}
        self._positions: dict[int, list[int]] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> None:
        """Make `text` known, novel or not."""
        encoded = "".join(self._ids.setdefault(token, chr(len(self._ids) + 1)) for token in tokens(text))
        self._encoded.setdefault(len(encoded), []).append(encoded)
        self._positions.setdefault(len(encoded), []).append(self._count)
        self._count += 1

    def is_novel(self, text: str) -> bool:
        """Whether no known text has an F above the threshold with `text`."""
        query = self._query(text)
        m = len(query)
        for n, bound in self._lengths_by_bound(m):
            if bound <= self.threshold:
                return True
            needed = self._least_lcs_above_threshold(m, n)
            if process.extractOne(query, self._encoded[n], scorer=LCSseq.similarity, score_cutoff=needed):
                return False
        return True

    def nearest(self, text: str, k: int = 10) -> list[tuple[int, float]]:
        """The `k` closest known texts: (position in the order of adding, F), best first, then in order of adding."""
        query = self._query(text)
        m = len(query)
        best: list[tuple[int, float]] = []
        for n, bound in self._lengths_by_bound(m):
            # Equal bounds are still compared: an equal score with an earlier position goes first.
            if len(best) == k and (k == 0 or bound < best[-1][1]):
                break
            positions = self._positions[n]
            scored = process.extract_iter(query, self._encoded[n], scorer=LCSseq.similarity)
            best += [(positions[index], f_measure(lcs, m, n)) for _, lcs, index in scored]
            best = sorted(best, key=lambda found: (-found[1], found[0]))[:k]
        return best

    def _query(self, text: str) -> str:
        return "".join(self._ids.get(token, _UNKNOWN) for token in tokens(text))

    def _lengths_by_bound(self, m: int) -> Iterator[tuple[int, float]]:
        """The lengths among the known texts, each with the highest F it allows, the most promising first."""
        bounds = ((n, f_measure(min(m, n), m, n)) for n in self._encoded)
        yield from sorted(bounds, key=lambda pair: (-pair[1], pair[0]))

    def _least_lcs_above_threshold(self, m: int, n: int) -> int:
        """The smallest LCS whose F, as rounded, exceeds the threshold; the caller knows that min(m, n) does."""
        # F = 2 lcs / (m + n) but for rounding, which is far smaller than the step to the next LCS.
        needed = max(1, int(self.threshold * (m + n) / 2) - 1)
        while f_measure(needed, m, n) <= self.threshold:
            needed += 1
        return needed
