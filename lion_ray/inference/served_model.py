"""The model of an endpoint that a run, or an evaluation, serves itself (`endpoints.NAME.serve`).

Invariants:
- Models are distinguished by their weights: the hash of the weights is part of each call's journal key.
- A request to our own server is not retried while the server still generates the answer: on a slow CPU that may take
  longer than any API would need. The server's metrics show whether it works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from lion_ray.config import EndpointConfig, ServeConfig
from lion_ray.inference.server import ModelServer
from lion_ray.models.quantize import served_folder
from lion_ray.models.weights import fingerprint

TIMEOUT_S = 4 * 3600.0
"""Minimum request timeout for a server that the run itself started, in seconds."""


class ServedModel:
    """The model that `serve` names. It is resolved, converted and hashed on first use, and only once."""

    def __init__(self, model: str, serve: ServeConfig, base_dir: Path, say: Callable[[str], None]) -> None:
        """`model`: the name by which the server offers it."""
        self._model, self._serve, self._base_dir, self._say = model, serve, base_dir, say
        self._folder: Path | None = None
        self._weights: str | None = None

    async def folder(self) -> Path:
        """The folder with the weights as they are served. Raises ModelError if they cannot be obtained."""
        if self._folder is None:
            self._folder = Path(await asyncio.to_thread(served_folder, self._serve, self._base_dir, self._say))
        return self._folder

    async def weights(self) -> str:
        """The hash of its files. Raises ModelError like `folder`."""
        if self._weights is None:
            self._weights = await asyncio.to_thread(fingerprint, await self.folder())
        return self._weights

    async def server(self) -> ModelServer:
        """A server for the model, not started. The caller starts and stops it. Raises ModelError like `folder`."""
        return ModelServer(self._serve, str(await self.folder()), self._model)


def patient(config: EndpointConfig) -> EndpointConfig:
    """The endpoint's settings for a server that the run itself started and keeps running."""
    changes = {
        "timeout_s": max(config.timeout_s, TIMEOUT_S),
        "first_byte_timeout_s": None,
        # No more than a single call's attempts, so that also a lone call waits until the server runs again.
        "breaker_failures": min(config.breaker_failures, config.max_attempts),
    }
    return config.model_copy(update=changes)
