"""The peers' environments: one for each, built on first use and kept in the user's cache folder.

Invariants: what a peer needs never touches this project's own environment; an environment that was not built to its end
is built anew.
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
    """Someone else's client, at a version that was driven here."""

    name: str
    requirements: tuple[str, ...]
    module: str

    @property
    def folder(self) -> Path:
        return (
            cache()
            / f"{self.name}-{self.requirements[0].partition('==')[2]}-py{sys.version_info[0]}{sys.version_info[1]}"
        )

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def build(self) -> str | None:
        """Make its environment where there is none; returns why it could not be made, or None."""
        ready = self.folder / ".ready"
        if ready.exists():
            return None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_suffix(".log")
        pip = [str(self.python), "-m", "pip", "install", "--progress-bar", "off", "--no-input"]
        with log.open("w") as out:
            try:
                for command in (
                    [sys.executable, "-m", "venv", str(self.folder)],
                    [*pip, "--upgrade", "pip>=25"],
                    [*pip, *self.requirements],
                ):
                    subprocess.run(command, check=True, stdout=out, stderr=out, timeout=BUILD_TIMEOUT_S)
            except (OSError, subprocess.SubprocessError) as error:
                said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                last = said[-1] if said else str(error)
                return f"its environment could not be built: {last[:200]} (log: {log})"
        ready.touch()
        return None


PEERS = (
    Peer("oumi", ("oumi==0.9",), "bench.peer_oumi"),
    Peer("curator", ("bespokelabs-curator==0.1.31",), "bench.peer_curator"),
)


def cache() -> Path:
    """Where environments are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lion-ray" / "bench"
