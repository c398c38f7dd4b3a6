"""The published filter, in an environment with `rouge_score`: a new process pool for each candidate, which scores it
against every known text.

``python -m bench.peer_rouge TEXTS.json`` reads ``{"known": […], "candidates": […]}`` and prints one line of JSON:
seconds and CPU seconds for each candidate, and the highest F of each.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from multiprocessing import Pool, cpu_count
from pathlib import Path

from rouge_score import rouge_scorer

from bench.measure import cpu_s


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    known = [scorer._tokenizer.tokenize(text) for text in given["known"]]
    highest = []
    cpu, began = cpu_s(), time.perf_counter()
    for text in given["candidates"]:
        tokens = scorer._tokenizer.tokenize(text)
        with Pool(cpu_count()) as pool:
            scores = pool.map(partial(rouge_scorer._score_lcs, tokens), known)
        highest.append(max(score.fmeasure for score in scores))
    seconds, used = time.perf_counter() - began, cpu_s() - cpu
    count = len(highest)
    print(json.dumps({"seconds": seconds / count, "cpu_s": used / count, "highest": highest}))


if __name__ == "__main__":
    main()
