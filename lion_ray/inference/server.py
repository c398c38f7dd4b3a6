"""A vLLM OpenAI-compatible server, started and stopped by a run, or by `lion-ray serve`.

Invariants:
- By default it binds to 127.0.0.1, on a free port.
- No message can inject the model's control tokens (see `chat_template`).
- It does not outlive the process that started it, however that process ends (see `process_guard`).
- `start` returns only once the server answers. If the server does not start, the error quotes the end of its log.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp

from lion_ray.config import NumberType, ServeConfig
from lion_ray.core.errors import EndpointError
from lion_ray.core.leftovers import OLD_S, scratch_folder
from lion_ray.core.process_guard import Guard, descendants
from lion_ray.inference import CPU_BUILD, NO_CPU, gpu_build, int8_kernel, leaves_compilation, memory_share, server_gpus
from lion_ray.inference.engine_settings import GIB, IN_PROCESS, cpu_environment
from lion_ray.inference.memory import AT_ONCE, sequences_at_once
from lion_ray.inference.ports import first_port, free_port, port_was_taken
from lion_ray.inference.server_metrics import ServerCounts, parse_counts
from lion_ray.models.chat_template import escaping_template, own_template, takes_texts
from lion_ray.models.completeness import check_apart
from lion_ray.models.machine import cores, multiplies_int8, resolve_type, speeds
from lion_ray.models.resolve import count_parameters

PLAIN_SAMPLING = {"repetition_penalty": 1.0, "top_k": 0, "min_p": 0.0, "max_new_tokens": None}
"""Neutral values for sampling options that a generation_config.json may set and the gateway never sends."""


NOT_ON_EVERY_GPU = "CutlassInt8ScaledMMLinearKernel"
"""vLLM's first choice for 8-bit weights on a GPU fails on Blackwell; its second (Triton's) runs on all."""
METRICS_TIMEOUT_S = 10.0
MOST_AT_ONCE = AT_ONCE
"""Concurrent requests of a server on a CPU, unless the configuration or a slow CPU limits them further."""
CPU_STEP_TOKENS = 512
"""Tokens that a server computes in one step on a CPU: enough for full speed, and a step still ends within seconds."""
MAX_STARTS = 3
"""Attempts to start a server, if another process takes its port meanwhile."""
WAVE_S = 300.0
"""On a CPU, limit the concurrent requests so that the first answers arrive after about this many seconds..."""
USUAL_ANSWER = 100
"""...for answers of this many tokens."""


def server_type(config: ServeConfig) -> NumberType:
    """The number type of the weights in a server on this machine."""
    return resolve_type(config.dtype, gpu=gpu_build(), on_gpu="bfloat16")


def arithmetic(config: ServeConfig) -> str:
    """The number type that a server computes with, as `machine.Speeds` names it."""
    return config.quantization or server_type(config)


def requests_at_once(config: ServeConfig, parameters: float | None) -> int:
    """How many requests a server runs at once, for a model with `parameters` parameters (None: not known).

    More concurrent requests raise the throughput but slow down each one: on a slow CPU, the first answer would take
    many minutes.
    """
    if config.max_num_seqs is not None:
        return config.max_num_seqs
    if server_gpus(config) or parameters is None:
        return MOST_AT_ONCE
    found, dtype = 8, arithmetic(config)
    while found < MOST_AT_ONCE:
        wider = 2 * found
        if USUAL_ANSWER * wider / speeds().tokens_per_second(parameters, wider, dtype) > WAVE_S:
            break
        found = wider
    return found


class ModelServer:
    """A child process that serves one model at ``base_url``."""

    def __init__(
        self,
        config: ServeConfig,
        model_dir: str,
        model_name: str,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        key: str | None = None,
        chat_template: Path | None = None,
        plain_sampling: bool = False,
    ) -> None:
        """
        Args:
            port: default: a free port.
            key: the API key that callers must send; the server gets it in its environment.
            chat_template: a file; default: the model's own template.
            plain_sampling: ignore the sampling options of the model's generation_config.json; an option that a call
                does not set is off.
        """
        self._plain_sampling = plain_sampling
        self._host, self._port, self._key, self._chat_template = host, port, key, chat_template
        self._config = config
        self._model_dir = model_dir
        self._model_name = model_name
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = Guard()
        self.base_url = ""
        self.log_path = scratch_folder("lion-ray-server-", kept_s=OLD_S) / "server.log"

    def command(self, port: int) -> list[str]:
        config = self._config
        arguments = {
            "--model": self._model_dir,
            "--served-model-name": self._model_name,
            "--host": self._host,
            "--port": str(port),
            "--dtype": server_type(config),
            "--max-model-len": str(config.max_model_len),
            "--max-num-seqs": str(requests_at_once(config, count_parameters(Path(self._model_dir)))),
            "--load-format": "safetensors",
        }
        folder, file = Path(self._model_dir), self._chat_template
        given = own_template(folder) if file is None else file.read_text(encoding="utf-8")
        template = None if given is None else escaping_template(folder, given)
        if given is not None and template is not None:
            written = self.log_path.with_name("chat.jinja")
            written.write_text(template, encoding="utf-8")
            arguments["--chat-template"] = str(written)
            if takes_texts(given):
                # Otherwise vLLM sees a loop over content parts and concludes that the template needs lists.
                arguments["--chat-template-content-format"] = "string"
        elif self._chat_template is not None:
            arguments["--chat-template"] = str(self._chat_template)
        if self._plain_sampling:
            arguments["--override-generation-config"] = json.dumps(PLAIN_SAMPLING)
        if gpu_build():
            gpus = server_gpus(config)
            share = memory_share(config.gpu_memory_utilization, gpus)
            if config.max_num_seqs is None:
                dtype, length = arguments["--dtype"], config.max_model_len
                at_once = sequences_at_once(Path(self._model_dir), dtype, length, share, gpus)
                arguments["--max-num-seqs"] = str(at_once)
            arguments["--gpu-memory-utilization"] = str(share)
            arguments["--tensor-parallel-size"] = str(math.ceil(gpus))
        else:
            # vLLM's default block on a CPU has 128 tokens, too coarse to share the common prefix of a role's prompts.
            arguments["--block-size"] = "32"
            arguments["--kv-cache-memory-bytes"] = str(int(config.kv_cache_gib * GIB))
            at_once = int(arguments["--max-num-seqs"])
            arguments["--max-num-batched-tokens"] = str(max(CPU_STEP_TOKENS, 2 * at_once))
            arguments["--distributed-executor-backend"] = IN_PROCESS
        flags = ["--enforce-eager"] if leaves_compilation(config.enforce_eager) else []
        pairs = [word for pair in arguments.items() for word in pair]
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *pairs, *flags]

    async def start(self, say: Callable[[str], None]) -> str:
        """Start the server and wait for its first answer; returns its base URL.

        Raises:
            ModelError: weights are missing from the model's folder.
            EndpointError: the server exited, or did not answer in time; or it was to run on a CPU with the GPU build.
        """
        if gpu_build() and not server_gpus(self._config):
            raise EndpointError(f"the server for {self._model_name} {NO_CPU}; give it a GPU, {CPU_BUILD}")
        await check_apart(Path(self._model_dir))
        environment = await asyncio.to_thread(self._environment)
        for attempt in range(1, MAX_STARTS + 1):
            port = self._port or free_port()
            try:
                await self._start_once(port, environment | {"VLLM_PORT": first_port(port)}, say)
                break
            except EndpointError:
                taken = self._port is None and not self.alive() and port_was_taken(self._log_lines())
                if not taken or attempt == MAX_STARTS:
                    raise
                say(f"another process took a port of the server for {self._model_name}; starting it with others")
        return self.base_url

    async def restart(self, say: Callable[[str], None]) -> None:
        """Start the server again at the same address, after it has exited. Its earlier log is kept beside the new one.

        Its child processes, which may still hold memory, are killed first.

        Raises:
            EndpointError: like `start`.
        """
        await asyncio.to_thread(self._guard.close)
        self._guard = Guard()
        old = len(list(self.log_path.parent.glob("server-*.log")))
        self.log_path.rename(self.log_path.with_name(f"server-{old + 1}.log"))
        port = int(self.base_url.removesuffix("/v1").rsplit(":", 1)[1])
        environment = await asyncio.to_thread(self._environment)
        await self._start_once(port, environment | {"VLLM_PORT": first_port(port)}, say)

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        environment.pop("VLLM_API_KEY", None)  # the user's shell may have one for another server
        if self._key:
            environment["VLLM_API_KEY"] = self._key
        if not gpu_build():
            environment |= cpu_environment(cores(), eager=leaves_compilation(self._config.enforce_eager))
            if self._config.quantization == "int8" and not multiplies_int8():
                environment["VLLM_DISABLED_KERNELS"] = int8_kernel.REPLACES
        elif self._config.quantization == "int8":
            environment["VLLM_DISABLED_KERNELS"] = NOT_ON_EVERY_GPU
        return environment

    async def _start_once(self, port: int, environment: dict[str, str], say: Callable[[str], None]) -> None:
        command = await asyncio.to_thread(self.command, port)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once, and is polled below
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self._guard.watch(self._process.pid)
        reached = "127.0.0.1" if self._host in ("0.0.0.0", "::") else self._host
        self.base_url = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/v1"
        say(f"starting a server for {self._model_name} at {self.base_url}")
        try:
            async with asyncio.timeout(self._config.start_timeout_s), aiohttp.ClientSession() as session:
                while not await self._answers(session):
                    self._guard.watch(*descendants(self._process.pid))
                    if not self.alive():
                        raise EndpointError(self.why_it_ended())
                    await asyncio.sleep(0.5)
            self._guard.watch(*descendants(self._process.pid))
        except TimeoutError:
            raise EndpointError(
                f"the server for {self._model_name} did not answer within {self._config.start_timeout_s:.0f} s: "
                f"{self._last_words()}"
            ) from None

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        """Whether the model is served: another process may have taken the port, and answer there."""
        try:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            async with session.get(f"{self.base_url}/models", headers=headers) as response:
                models = (await response.json())["data"] if response.status == 200 else []
                return self._model_name in [one["id"] for one in models]
        except (aiohttp.ClientError, ValueError, LookupError, TypeError):
            return False

    async def counts(self) -> ServerCounts | None:
        """The server's counters from its metrics page. Returns None if it does not answer now."""
        timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
        try:
            page = f"{self.base_url.removesuffix('/v1')}/metrics"
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(page) as response:
                return parse_counts(await response.text()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    def why_it_ended(self) -> str:
        """One line about a server that has exited: its exit code or signal, and what its log says."""
        code = None if self._process is None else self._process.poll()
        how = "" if code is None else f" (exit code {code})" if code >= 0 else f" ({signal.Signals(-code).name})"
        return f"the server for {self._model_name} ended{how}: {self._last_words()}"

    def _last_words(self) -> str:
        lines = self._log_lines()
        errors = [line for line in lines if "Error" in line]
        return f"{(errors or lines or ['the log is empty'])[-1].strip()[:300]} (log: {self.log_path})"

    def _log_lines(self) -> list[str]:
        return [line for line in self.log_path.read_text(errors="replace").split("\n") if line.strip()]

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise EndpointError(f"the server for {self._model_name} has not started")
        return self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server and its child processes, and wait until they have exited."""
        if self._process is not None:
            # The server's child processes outlive it if it has to be killed.
            self._guard.watch(*descendants(self._process.pid))
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._guard.close()
