"""Check training on this machine's GPUs: ``python -m bench.gpu_check``. `bench/README.md` says what is measured.

Standard output is one JSON object; progress goes to standard error. Exits with 0 if every number is right, with 1 if
one is wrong or a section did not come to its end. Each section runs in a process of its own under a time limit: an
error on the GPU ends that section and no other.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    # The section's function, and the most seconds that it may take.
    "fits": ("bench.gpu_check.fits:against_the_cpu", 100),
    "kernels": ("bench.gpu_check.parts:kernels", 70),
    "losses": ("bench.gpu_check.parts:losses", 50),
    "sharded": ("bench.gpu_check.parts:sharded", 50),
    "torchrun": ("bench.gpu_check.fits:under_torchrun", 110),
    "qwen3-0.6b": ("bench.gpu_check.cells:qwen3", 180),
    "llama-1b": ("bench.gpu_check.cells:llama_1b", 80),
    "llama-7b-lora": ("bench.gpu_check.cells:llama_7b_lora", 110),
}
NEEDED = ("torch", "transformers", "peft", "pydantic", "safetensors", "numpy", "yaml", "jinja2", "filelock", "regex")


def main(arguments: list[str]) -> int:
    """Run the sections; returns the process's exit code."""
    given = _parser().parse_args(arguments)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"gpu-check: {', '.join(missing)} cannot be imported; install it (wheels suffice)", file=sys.stderr)
        return 2
    names = given.only or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        print(f"gpu-check: no section {unknown[0]}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    if given.here:
        return _here(names, tiny=given.tiny)
    began = time.monotonic()
    machine = _machine(tiny=given.tiny)
    if machine["gpus"] == [] and not given.tiny:
        print("gpu-check: torch sees no GPU here; --tiny checks the check itself on a CPU", file=sys.stderr)
        return 2
    sections = {}
    for name in names:
        left = 60 * given.minutes - (time.monotonic() - began)
        # A busy CPU may be slow: only the whole is limited there.
        sections[name] = _section(name, left if given.tiny else min(SECTIONS[name][1], left), tiny=given.tiny)
    ok = all(section["ok"] for section in sections.values())
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"ok": ok, "seconds": seconds, "tiny": given.tiny, "machine": machine, "sections": sections}))
    return 0 if ok else 1


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    made.add_argument("--tiny", action="store_true", help="on the CPU with the smallest models: tests the check itself")
    made.add_argument("--minutes", type=float, default=8.0, help="the most that all may take together")
    made.add_argument("--only", type=lambda text: text.split(","), help="these sections, with commas between them")
    made.add_argument("--here", action="store_true", help="in this process: one JSON object for each number")
    return made


def _section(name: str, limit_s: float, *, tiny: bool) -> dict[str, Any]:
    """Run a section in a process of its own; returns its numbers and whether all is well."""
    if limit_s <= 5:
        return {"ok": False, "error": "no time was left", "numbers": []}
    print(f"== {name} (at most {limit_s:.0f} s)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "bench.gpu_check", "--here", "--only", name, *(["--tiny"] if tiny else [])]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        late = threading.Event()
        timer = threading.Timer(limit_s, _end, (process, late))
        timer.start()
        try:
            assert process.stdout is not None
            numbers = list(_numbers(process.stdout))
            process.wait()
        finally:
            timer.cancel()
            _end(process)
    error = f"not done after {limit_s:.0f} s" if late.is_set() else None
    if error is None and process.returncode:
        error = f"it ended with {process.returncode}"
    wrong = [one["name"] for one in numbers if one.get("ok") is False]
    found: dict[str, Any] = {"ok": error is None and not wrong, "seconds": round(time.monotonic() - began, 1)}
    if error is not None:
        found["error"] = error
    if wrong:
        found["wrong"] = wrong
    return {**found, "numbers": numbers}


def _end(process: subprocess.Popen[str], late: threading.Event | None = None) -> None:
    """End a section with every process that it started (torchrun's)."""
    if late is not None:
        late.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _numbers(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if isinstance(found, dict) and "name" in found:
            verdict = {None: "", True: "right ", False: "WRONG "}[found.get("ok")]
            print(f"   {verdict}{json.dumps(found)}", file=sys.stderr, flush=True)
            yield found
        else:
            print(f"   {line.rstrip()}", file=sys.stderr, flush=True)


def _here(names: list[str], *, tiny: bool) -> int:
    import torch

    from bench.gpu_check.numbers import Machine
    from lion_ray.imitation.training.speed import set_allocator

    machine = Machine.this(tiny=tiny)
    if tiny:
        torch.set_num_threads(1)
    set_allocator()
    for name in names:
        module, _, function = SECTIONS[name][0].partition(":")
        run: Callable[[Machine], None] = getattr(importlib.import_module(module), function)
        run(machine)
    return 0


def _machine(*, tiny: bool) -> dict[str, Any]:
    import torch

    count = 0 if tiny else torch.cuda.device_count()
    versions = {name: _version(name) for name in ("torch", "transformers", "peft", "flash-attn", "liger-kernel")}
    return {
        "gpus": [torch.cuda.get_device_name(number) for number in range(count)],
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
