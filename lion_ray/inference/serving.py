"""Serve a run's student: a vLLM OpenAI server in the foreground.

Invariants:
- The server binds to loopback by default, and to other addresses only with an API key. The key comes from the
  environment and never appears on a command line.
- The server formats prompts as in training, even if the student's tokenizer has no chat template.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lion_ray.config import ServeConfig
from lion_ray.core.addresses import is_loopback
from lion_ray.core.errors import ConfigError
from lion_ray.core.store import RunStore
from lion_ray.core.terminal import tell
from lion_ray.inference import student_type, wants_gpu
from lion_ray.inference.kept_server import KeptServer
from lion_ray.inference.server import ModelServer
from lion_ray.models.checkpoints import Student, find_student


def serve(store: RunStore, *, iteration: int | None, host: str, port: int | None, key_env: str | None) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigError: no such checkpoint; or a required key is missing or empty.
        EndpointError: the server did not start, or cannot be kept running.
    """
    key = api_key(host, key_env)
    student = find_student(store, iteration)
    asyncio.run(_serve(student, host, port, key, key_env))


def api_key(host: str, key_env: str | None) -> str | None:
    """The API key that callers must send. Returns None if `host` is loopback and no key was named.

    Raises:
        ConfigError: the key is missing and `host` is not loopback, or the variable `key_env` is not set.
    """
    if key_env is None:
        if not is_loopback(host):
            raise ConfigError(
                f"--host {host} can be reached from other machines: name the environment variable that holds the API "
                "key for callers (--api-key-env NAME)"
            )
        return None
    key = os.environ.get(key_env, "")
    if not key:
        raise ConfigError(f"--api-key-env {key_env}: the variable is not set")
    return key


def serving(student: Student) -> ServeConfig:
    """The server's settings, the same as those of the student's engines."""
    config = student.config.student
    return ServeConfig(
        model=str(student.folder),
        dtype=student_type(config.dtype),
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        enforce_eager=config.enforce_eager,
        kv_cache_gib=config.kv_cache_gib,
        gpu_memory_utilization=config.gpu_memory_utilization,
        num_gpus=config.tensor_parallel_size if wants_gpu(config.use_gpu) else 0,
    )


@contextmanager
def model_server(
    config: ServeConfig,
    name: str,
    prompt: str,
    base_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    key: str | None = None,
) -> Iterator[ModelServer]:
    """A server, not started, for the model in the folder `config.model`, with prompts formatted as `prompt` says.

    Only a call's own sampling options apply: the server ignores a repetition penalty in the model's
    generation_config.json, as the student's engines do. The caller starts and stops the server.

    Args:
        name: the model name that the server offers.
        prompt: as ``student.prompt``; a file path is relative to `base_dir`.

    Raises:
        ConfigError, ModelError: like `models.prompter.frame_template`.
    """
    from lion_ray.models.prompter import frame_template

    with tempfile.TemporaryDirectory(prefix="lion-ray-serve-") as scratch:
        template = frame_template(config.model, prompt, base_dir)
        if template is not None:
            (Path(scratch) / "chat.jinja").write_text(template)
        yield ModelServer(
            config,
            config.model,
            name,
            host=host,
            port=port,
            key=key,
            chat_template=None if template is None else Path(scratch) / "chat.jinja",
            plain_sampling=True,
        )


async def _serve(student: Student, host: str, port: int | None, key: str | None, key_env: str | None) -> None:
    name = student.config.run_name
    prompt = student.config.student.prompt
    with model_server(serving(student), name, prompt, student.base_dir, host=host, port=port, key=key) as server:
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        kept = KeptServer(server, tell)
        try:
            starting = asyncio.create_task(kept.start())
            stopping = asyncio.create_task(ended.wait())
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                return
            authorization = f" -H 'Authorization: Bearer '\"${key_env}\"" if key else ""
            tell(f"{name}, {student.version}, answers at {starting.result()} (Ctrl-C ends it)")
            tell(
                f"  curl {server.base_url}/chat/completions{authorization} -H 'Content-Type: application/json' \\\n"
                f'    -d \'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
            )
            await kept.during(stopping)
        finally:
            await kept.stop()
    tell("stopped")
