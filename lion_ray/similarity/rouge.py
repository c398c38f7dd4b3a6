"""ROUGE-L F over tokens, in the floats of the `rouge_score` package.

Invariants:
- F is computed in that package's order and precision: P = lcs/n, R = lcs/m, F = 2PR/(P+R). Rounding decides the many
  scores that are a threshold exactly.
- On ASCII texts the tokens are that package's (runs of a-z and 0-9, lower case, no stemmer). On other texts it would
  drop every other letter, so here they are kept: words where a script puts spaces between words, single characters
  where it does not (Chinese, Japanese, Thai, Lao, Khmer, Burmese).

This module compares nothing by itself (see `novelty`).
"""

from __future__ import annotations

import re
import unicodedata

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
