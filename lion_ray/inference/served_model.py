"""The model of an endpoint that a run, or an evaluation, serves itself (`endpoints.NAME.serve`).

Invariants:
- What answers is told apart by its weights: their hash is part of each call's journal key.
- Nobody asks a server of one's own again for what it is still writing: on a slow CPU an answer may take longer than
  any API's would, and whether the server works is seen from its metrics.
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
"""The least time for an answer of a server of one's own, in seconds."""


class ServedModel:
    """What `serve` names: found, converted and hashed when that is needed, and once."""

    def __init__(self, model: str, serve: ServeConfig, base_dir: Path, say: Callable[[str], None]) -> None:
        """`model`: the name under which it answers."""
        self._model, self._serve, self._base_dir, self._say = model, serve, base_dir, say
        self._folder: Path | None = None
        self._weights: str | None = None

    async def folder(self) -> Path:
        """Where its weights are, as they are served. Raises ModelError where they cannot be had."""
        if self._folder is None:
            self._folder = Path(await asyncio.to_thread(served_folder, self._serve, self._base_dir, self._say))
        return self._folder

    async def weights(self) -> str:
        """The hash of its files. Raises ModelError as `folder`."""
        if self._weights is None:
            self._weights = await asyncio.to_thread(fingerprint, await self.folder())
        return self._weights

    async def server(self) -> ModelServer:
        """A server for it, not started: whoever starts it stops it. Raises ModelError as `folder`."""
        return ModelServer(self._serve, str(await self.folder()), self._model)


def patient(config: EndpointConfig) -> EndpointConfig:
    """The settings of an endpoint whose server is one's own."""
    return config.model_copy(update={"timeout_s": max(config.timeout_s, TIMEOUT_S), "first_byte_timeout_s": None})
