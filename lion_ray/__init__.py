"""lion-ray: adversarial distillation of closed language models as one resumable Ray job.

The names in `__all__` are the Python API (docs/python-api.md). They are imported on first use, so that importing this
package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lion_ray.api import distil, distil_async, open_run
    from lion_ray.config import RunConfig
    from lion_ray.core.errors import LionError
    from lion_ray.run_result import RunResult
    from lion_ray.tracking import Tracker

__version__ = "0.1.0"
__all__ = ["LionError", "RunConfig", "RunResult", "Tracker", "__version__", "distil", "distil_async", "open_run"]

_WHERE = {
    "LionError": "lion_ray.core.errors",
    "RunConfig": "lion_ray.config",
    "RunResult": "lion_ray.run_result",
    "Tracker": "lion_ray.tracking",
    "distil": "lion_ray.api",
    "distil_async": "lion_ray.api",
    "open_run": "lion_ray.api",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
