"""What a model's folder holds, in a few digits: two folders of one name are told apart by them.

This module imports no torch and knows nothing of endpoints.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from lion_ray.core import layout


def fingerprint(folder: Path, *said: str) -> str:
    """12 hex digits of SHA-256 over a model's files that decide what it answers, and what else is `said` of it."""
    digest = hashlib.sha256("\x1f".join(said).encode())
    wanted = ("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*")
    # What training notes down beside the weights decides nothing.
    ignored = (layout.TRAINING, "canary.json", "lion-ray.json")
    for path in sorted({path for pattern in wanted for path in folder.glob(pattern)}):
        if path.is_file() and path.name not in ignored:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
