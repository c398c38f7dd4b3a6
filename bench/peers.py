"""The peers' environments: one for each, built on first use and kept in the user's cache folder.

Invariants: a peer's requirements are never installed into this project's environment; an incomplete environment is
rebuilt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BUILD_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Peer:
    """Another project's client, with the version that was tested."""

    name: str
    version: str
    module: str
    installs: tuple[tuple[str, ...], ...]
    """The arguments of pip's install commands, in order."""

    @property
    def folder(self) -> Path:
        return cache() / f"{self.name}-{self.version}-py{sys.version_info[0]}{sys.version_info[1]}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def build(self) -> str | None:
        """Build its environment if it is missing; returns the reason if that failed, else None."""
        ready = self.folder / ".ready"
        if ready.exists():
            return None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_name(f"{self.folder.name}.log")
        pip = [str(self.python), "-m", "pip", "install", "--progress-bar", "off", "--no-input"]
        with log.open("w") as out:
            try:
                for command in (
                    [sys.executable, "-m", "venv", str(self.folder)],
                    [*pip, "--upgrade", "pip>=25"],
                    *([*pip, *step] for step in self.installs),
                ):
                    subprocess.run(command, check=True, stdout=out, stderr=out, timeout=BUILD_TIMEOUT_S)
            except (OSError, subprocess.SubprocessError) as error:
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                last = lines[-1] if lines else str(error)
                return f"its environment could not be built: {last[:200]} (log: {log})"
        ready.touch()
        return None


OUMI_IMPORTS = (
    "accelerate>=1.10.0,<2.0",
    "aiofiles>=24.1.0,<26",
    "aiohttp>=3.12,<3.14",
    "backoff>=2.2.1,<2.3",
    "click<8.5.0",
    "datasets>=3.2,<4.8.6",
    "hdrhistogram>=0.10,<0.11",
    "jsonlines",
    "jsonschema>=4.0,<5.0",
    "mlflow-skinny>=3.1",
    "numpy>=1.26,<2.4",
    "omegaconf==2.4.0.dev4",
    "pandas>=2.3,<3",
    "peft>=0.17,<0.20",
    "pexpect>=4.9,<4.10",
    "pillow>=11.3,<12.4",
    "posthog>=7.0,<8.0",
    "pycares<6.0.0",
    "pydantic>=2.11,<2.14",
    "requests>=2.31,<3.0",
    "responses>=0.25,<0.27",
    "safetensors>=0.6,<0.9",
    "scikit-learn",
    "tensorboard>=2.20,<2.21",
    "tiktoken>=0.7,<1.0",
    "torch==2.13.0",
    "tqdm",
    "transformers>=4.57,<5.17",
    "trl>=0.24,<1.7",
    "typer<0.25.2",
    "uvicorn<0.49.0",
    "wandb>=0.21,<0.26",
)
"""The imports of its remote engine, in its required versions; except torch, which it loads but does not use here, in
the version of this project's CPU environment. All of its requirements would be 7 GB and slow to resolve."""

PEERS = (
    Peer("oumi", "0.9", "bench.peer_oumi", (("--no-deps", "oumi==0.9"), OUMI_IMPORTS)),
    Peer("curator", "0.1.31", "bench.peer_curator", (("bespokelabs-curator==0.1.31",),)),
)


def cache() -> Path:
    """The folder of the environments."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lion-ray" / "bench"
