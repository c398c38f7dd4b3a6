"""Checks that a folder's weights are all there, and belong to the model that its config.json describes.

vLLM starts without a word if a linear layer or an embedding is missing from a model's files: it serves whatever the
memory held. So what vLLM loads is checked here first, by the files' headers.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

from lion_ray.core.errors import ModelError
from lion_ray.core.terminal import tell


def check_weights(folder: Path) -> None:
    """Raise ModelError if weights are missing from the model's files, or have other shapes than config.json says.

    Reads the files' headers only. Imports torch and transformers; a model that transformers cannot build is left to
    the one that loads it, as are quantized weights, whose names only their kernels know.
    """
    if not _says(folder):
        return
    import transformers
    from transformers import AutoModelForCausalLM

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)  # its report of what is missing takes 20 lines
    try:
        both: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype="auto",
            device_map="meta",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception:  # noqa: BLE001
        # Unknown to transformers, or unreadable: vLLM may know it, and says what is wrong if not.
        return
    finally:
        transformers.logging.set_verbosity(verbosity)
    model, loaded = both
    check_names(folder, model, loaded)


def _says(folder: Path) -> bool:
    """Whether the folder's config.json tells the names of its weights."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "quantization_config" not in config


def check_names(model_dir: str | Path, model: Any, loaded: dict[str, Any]) -> None:
    """Raise ModelError if the weights do not belong to this model. Weights missing from the files would be random.

    `loaded`: what ``from_pretrained(output_loading_info=True)`` returned about them.
    """
    for found, what in (
        ("missing_keys", "its files lack {}, which would be random; download the model again"),
        ("mismatched_keys", "its weights belong to another model: {} has another shape than config.json says"),
    ):
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in loaded.get(found) or ())
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{model_dir}: {what.format(names[0] + more)}")
    layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0) or 0)
    for name in sorted(loaded.get("unexpected_keys") or ()):
        # Other extra weights (a vision tower, rotary tables of old versions) do not matter; an extra layer does.
        if (layer := re.search(r"(?:^|\.)(?:layers?|h|blocks?)\.([0-9]+)\.", name)) and layers <= int(
            layer[1]
        ) < 10 * layers:
            raise ModelError(
                f"{model_dir}: its weights belong to another model: {name}, but config.json says {layers} layers"
            )


async def check_apart(folder: Path) -> None:
    """`check_weights` in a process of its own, for one that does without torch. Raises ModelError like it."""
    if not _says(folder):
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lion_ray.models.completeness", str(folder)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        said = (await process.communicate())[0].decode(errors="replace").strip()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    # The message is the last line: libraries may print as well. Any other end of the process proves nothing.
    if process.returncode == ModelError.exit_code and said:
        raise ModelError(said.splitlines()[-1])


if __name__ == "__main__":
    try:
        check_weights(Path(sys.argv[1]))
    except ModelError as error:
        tell(str(error))
        sys.exit(error.exit_code)
