"""Commands in processes of their own that need not import everything again: forked from one that has imported it.

A forked process gets its own environment, working directory, arguments and outputs, and runs the module as
``python -m`` does. `python -m tests.warm MODULE …` imports the modules, then reads jobs from stdin as JSON lines and
answers each with an exit code. Some modules read the environment when they are imported (huggingface_hub, transformers:
HF_HOME, HF_ENDPOINT): such variables go into `first`, and jobs with other values get another process to fork from.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[1]
COMMAND_LINE = ("lion_ray.cli", "openai", "torch", "pyarrow.compute", "pyarrow.dataset", "pyarrow.parquet")
"""What most commands import."""
TOKENIZERS = (*COMMAND_LINE, "transformers", "transformers.models.auto.tokenization_auto", "huggingface_hub")
"""What commands that write prompts or speak to the hub import besides."""
TRAINING = ("torch", "transformers", "lion_ray.imitation.training.fit")
LEFT_OUT = ("RAY_ADDRESS", "OPENAI_API_KEY")
"""Variables of this machine that no command is to see."""


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    """Negative: the signal that ended it."""
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line that the user is told."""
        lines = [line for line in self.err.strip().split("\n") if line.startswith("lion-ray: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


def lion(*words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, **options: Any) -> Outcome:
    """Run the command line to its end; `env` is added to this process's environment. `options`: as of `run`."""
    return run("lion_ray", *words, cwd=cwd, env=env, **options)


def run(
    module: str,
    *words: str,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    largest_file: int | None = None,
    imported: tuple[str, ...] = COMMAND_LINE,
    first: Mapping[str, str] | None = None,
) -> Outcome:
    """Run ``python -m MODULE WORDS`` to its end.

    Args:
        largest_file: the most bytes that one file may have.
        first: variables that are set before the modules are imported, and for the job.
    """
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        job = {
            "module": module,
            "words": list(words),
            "cwd": str(cwd),
            "env": environment | {"PYTHONPATH": str(ROOT)} | dict(first or {}) | dict(env or {}),
            "outputs": [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)],
            "largest_file": largest_file,
        }
        server = _server(imported, tuple((first or {}).items()))
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = json.loads(server.stdout.readline())
        out.seek(0)
        err.seek(0)
        return Outcome(code, out.read(), err.read())


@functools.cache
def _server(imported: tuple[str, ...], first: tuple[tuple[str, str], ...]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.warm", *imported]
    pipe = subprocess.PIPE
    # OpenMP reads it when it is loaded.
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(first)
    started = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    )
    atexit.register(_end, started)
    return started


def _end(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.wait()


def _become(job: dict[str, Any]) -> None:
    """Turn this process into the job's."""
    for number, path in enumerate((os.devnull, *job["outputs"])):
        opened = os.open(path, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sys.argv = [job["module"], *job["words"]]
    sys.path[:] = [job["cwd"], *(path for path in sys.path if path != job["cwd"])]
    if job["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # so that a forked process copies no pages for its collections
    for line in iter(sys.stdin.readline, ""):
        if pid := os.fork():
            print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)
        else:
            job = json.loads(line)
            _become(job)
            _end_with(_run(job["module"]))


def _run(module: str) -> int:
    """Run a module as the interpreter does; returns the exit code."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    return 0


def _end_with(code: int) -> NoReturn:
    """End as the interpreter does, except that it does not take every imported module down, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
