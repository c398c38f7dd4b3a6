"""A small reference to weights, which processes can exchange."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lion_ray.core.copies import copies_folder
from lion_ray.core.store import RunStore
from lion_ray.core.terminal import tell
from lion_ray.models.resolve import resolve_model


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A reference to weights: a model source of the configuration, or a folder of the run."""

    version: str
    """base, or the iteration that trained it."""
    source: str = ""
    folder: str = ""

    def fetch(self, store: RunStore, base_dir: Path) -> Path:
        """The weights' folder on this machine; fetches or copies them if needed."""
        if self.folder:
            return store.local_folder(self.folder, cache=copies_folder())
        return Path(resolve_model(self.source, base_dir=base_dir, progress=tell))
