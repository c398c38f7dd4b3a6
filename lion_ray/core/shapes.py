"""The types of the fields in a run's own records: a field of another type is an error that names its file.

Invariant: a field that is not listed here is not checked, and a field may be missing, because versions differ. Code
that needs a field raises if it is missing.
"""

from __future__ import annotations

from lion_ray.core.errors import DamagedError
from lion_ray.core.sealed import Record

_COUNT = (int,)
_NUMBER = (int, float, type(None))
_TEXT = (str,)
_OBJECT = (dict,)
_MAYBE = (dict, type(None))

MANIFEST: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("rows", "parts", "hard", "easy", "calls", "samples", "steps", "verdicts", "right"), _COUNT),
    **dict.fromkeys(("pairs", "order_flips", "both_orders", "cut_off", "against", "scored"), _COUNT),
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "cost_usd", "tokens", "mean_gap"), _NUMBER),
    **dict.fromkeys(("began", "seconds", "fit_seconds", "tokens_per_second", "mfu"), (int, float)),
    **dict.fromkeys(("heldout_loss_before", "heldout_loss_after", "heldout_loss_served"), _NUMBER),
    **dict.fromkeys(("quarantined", "unanswered", "kinds", "judges", "dropped", "by_check", "files"), _OBJECT),
    **dict.fromkeys(("relative_quality", "drift", "mean", "gain", "gain_over_base", "teacher"), _MAYBE),
}
RUN: dict[str, tuple[type, ...]] = {"format": _COUNT, "config": _OBJECT, "versions": _OBJECT, "base_dir": _TEXT}
CONFIG: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("iterations", "seed"), _COUNT),
    **dict.fromkeys(("data", "endpoints", "student", "imitation", "discrimination", "generation", "referee"), _OBJECT),
    "run_name": _TEXT,
    "journal": (str, type(None)),
}
ATTEMPT: dict[str, tuple[type, ...]] = {
    "attempt": _COUNT,
    "token": _TEXT,
    "alive": (int, float),
    "ended": (bool,),
    "beat": _COUNT,
    "format": _COUNT,
}
PROGRESS: dict[str, tuple[type, ...]] = {"stages": (list,), "meter": _TEXT}
STOP: dict[str, tuple[type, ...]] = {"iteration": _COUNT, "reason": _TEXT}


def check(record: Record, fields: dict[str, tuple[type, ...]]) -> Record:
    """Returns the record unchanged.

    Raises:
        DamagedError: a field has a type or a value that no version writes.
    """
    for name, kinds in fields.items():
        if name not in record:
            continue
        value = record[name]
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if wrong or (kinds is _COUNT and value < 0):
            raise DamagedError(record.path, f"its {name!r} is {str(value)[:40]!r}")
    return record
