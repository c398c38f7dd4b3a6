"""Prints the folder of the tasks, for lm-eval; with ``--write``, generates their files first."""

from __future__ import annotations

import sys

from lion_ray.evaluation.benchmarks.lm_eval_tasks import FOLDER, yaml_files

if sys.argv[1:] == ["--write"]:
    for name, text in yaml_files():
        (FOLDER / name).write_text(text)
elif sys.argv[1:]:
    sys.exit("lm_eval_tasks: the only option is --write")
print(FOLDER)
