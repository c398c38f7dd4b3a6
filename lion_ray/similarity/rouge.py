"""ROUGE-L F over tokens, with the same floats as the `rouge_score` package.

Invariants:
- F is computed in that package's order and precision: P = lcs/n, R = lcs/m, F = 2PR/(P+R). Rounding matters because
  many scores equal a threshold exactly.
- On ASCII texts the tokens are that package's (runs of a-z and 0-9, lower case, no stemmer). It drops all non-ASCII
  letters; here they are kept, as words in scripts that put spaces between words, and as single characters in other
  scripts (Chinese, Japanese, Thai, Lao, Khmer, Burmese).

This module compares no texts (see `novelty`).
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
    """The text's tokens, in order."""
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    return _unicode_tokens(unicodedata.normalize("NFKC", text).casefold())


def _unicode_tokens(text: str) -> list[str]:
    found: list[str] = []
    # Whether a following letter continues the last token, and whether a following combining mark does.
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
    """ROUGE-L F of texts of m and n tokens whose longest common subsequence is `lcs`, rounded as in `rouge_score`."""
    if lcs == 0:
        return 0.0
    precision, recall = lcs / n, lcs / m
    return 2 * precision * recall / (precision + recall)
