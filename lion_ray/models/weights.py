"""The fingerprint of a model's folder, which distinguishes folders of the same name.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from lion_ray.core import layout


def fingerprint(folder: Path, *settings: str) -> str:
    """12 hex digits of SHA-256 over `settings` and the files of a model that affect its answers."""
    digest = hashlib.sha256("\x1f".join(settings).encode())
    wanted = ("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*")
    # Files that training writes beside the weights do not affect answers.
    ignored = (layout.TRAINING, layout.CANARY, "lion-ray.json")
    for path in sorted({path for pattern in wanted for path in folder.glob(pattern)}):
        if path.is_file() and path.name not in ignored:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
