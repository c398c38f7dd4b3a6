"""The speed of this machine's CPU: its cores, its flags, and a one-time benchmark of matrix products.

Invariants:
- Only this module decides which type `auto` means on a CPU, for engines, servers, fits, benches and `doctor`.
- The benchmark runs once per machine, in well under a second, and its results are kept in the user's cache folder.
  Results of another CPU, another torch or other settings are not used; those of a busy machine expire.
- An explicit type is not changed; `slower_than_best` gives its cost.
- Importing this module does not import torch: the benchmark runs in a separate process (``python -m
  lion_ray.models.machine``), so that the command line starts quickly.

Why it matters: bfloat16 is the fastest type on a CPU with AMX or AVX-512 BF16. A CPU with only AVX2 emulates it, five
times slower than float32.

Of models, this module knows only the number of parameters; it does not know vLLM or Ray.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from lion_ray.config import Dtype, NumberType, Precision
from lion_ray.core.errors import InfrastructureError
from lion_ray.models.resolve import cache_folder

TYPES: tuple[NumberType, ...] = ("float32", "bfloat16", "float16")
INT8 = "int8"
"""A served model's `quantization`; `auto` never chooses it, because it costs accuracy."""

_NATIVE_FLAGS: dict[NumberType, frozenset[str]] = {
    "bfloat16": frozenset({"amx_bf16", "avx512_bf16", "avx_ne_convert_bf16", "bf16"}),
    "float16": frozenset({"amx_fp16", "avx512_fp16", "asimdhp"}),
}
"""CPU flags (Linux names, x86-64 and Arm); without any of them the type is emulated."""
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
_CLEARLY = 1.25
"""A rounded type must beat float32 by this factor before it is chosen: rounding costs accuracy."""
_VERSION = 4
"""Version of the cached file; increase it if the benchmark changes."""

# The size of the products: about a layer of a model with 1.5 billion parameters, too large for a CPU's cache.
_INNER, _OUTER = 1536, 8960
_CHOOSING_ROWS, _CHOOSING_OUTER = 64, 2240
_ROWS = (1, 16, 64, 256)
_TIMED_S = 0.06
_BUSY_KEPT_S = 900.0
"""How long results of a busy machine are used, in seconds, so that not every process of a run measures again."""
_OWN_SHARE = 0.75
"""The machine was busy if the benchmark got less than this share of all cores' time."""
_LAYERS_EFFICIENCY = 0.7
"""A whole model's speed as a share of a bare product's: attention, norms and sampling take the rest."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speeds in GFLOP/s (a multiply-add counts as two operations), on all cores of this process."""

    cpu: str
    cores: int
    native: tuple[str, ...]
    """The types that the CPU supports natively, by its flags."""
    by_type: Mapping[str, float]
    """GFLOP/s of a product of 64 rows, by type; `int8` with weights quantized beforehand and rows dynamically."""
    by_rows: Mapping[int, float]
    """GFLOP/s of the fastest type by the product's rows: one row is limited by memory, many by arithmetic."""
    busy: bool = False
    """Other processes used the cores during the benchmark: the ranking is right, but the figures are too low."""

    @property
    def fastest(self) -> NumberType:
        """The type that `auto` means here."""
        best: NumberType = "float32"
        for one in TYPES[1:]:
            margin = _CLEARLY if best == "float32" else 1.0
            if one in self.native and self.by_type[one] > margin * self.by_type[best]:
                best = one
        return best

    def slower_than_best(self, dtype: str) -> float:
        """How many times slower `dtype` is than the type that `auto` chooses; less than 1 if it is faster."""
        return self.by_type[self.fastest] / self.by_type[dtype]

    def gflops(self, rows: float, dtype: str | None = None) -> float:
        """GFLOP/s of a product of `rows` rows, interpolated on a logarithmic scale."""
        known = sorted(self.by_rows)
        rows = min(max(rows, known[0]), known[-1])
        above = next(one for one in known if one >= rows)
        below = max(one for one in known if one <= rows)
        share = 0.0 if above == below else math.log(rows / below) / math.log(above / below)
        found = self.by_rows[below] ** (1 - share) * self.by_rows[above] ** share
        return found / (1.0 if dtype is None else self.slower_than_best(dtype))

    def tokens_per_second(self, parameters: float, rows: float, dtype: str | None = None) -> float:
        """Tokens per second that a model reads or writes if `rows` tokens are computed at once."""
        return _LAYERS_EFFICIENCY * 1e9 * self.gflops(rows, dtype) / (2 * parameters)

    def sentence(self) -> str:
        """For `doctor`: the types and their speeds, the fastest first."""
        ranked = sorted(self.by_type, key=lambda one: -self.by_type[one])
        speeds = ", ".join(f"{one} {self.by_type[one]:.0f}" for one in ranked)
        return f"{self.fastest} (GFLOP/s on {self.cores} cores: {speeds})"


def cores() -> int:
    """Cores that this process may use, limited by its affinity and a container's quota."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(found, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return found  # no container, or "max": no quota


@lru_cache(maxsize=1)
def speeds() -> Speeds:
    """This machine's speeds, from the cache folder or measured now.

    Raises:
        InfrastructureError: the benchmark failed, for example because torch could not be run.
    """
    path = cache_folder() / f"machine-{_fingerprint()}.json"
    try:
        known = _from_json(json.loads(path.read_text(encoding="utf-8")))
        if not known.busy or time.time() - path.stat().st_mtime < _BUSY_KEPT_S:
            return known
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or the file is damaged: measure now
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lion_ray.models.machine"], capture_output=True, text=True, timeout=300, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        result = _from_json(found)
    except (subprocess.SubprocessError, OSError, ValueError, LookupError, TypeError) as error:
        output = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise InfrastructureError(
            f"this CPU's speed could not be measured ({output[-1] if output else type(error).__name__}); "
            "run `lion-ray doctor` to see what is missing"
        ) from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(found) + "\n", encoding="utf-8")
        aside.replace(path)  # atomic, because other processes may be reading it
    except OSError:
        pass  # without a writable cache every process measures, which only costs time
    return result


def resolve_type(dtype: Dtype, *, gpu: bool, on_gpu: NumberType) -> NumberType:
    """`dtype`, or what `auto` means: `on_gpu` on a GPU, the fastest type on a CPU."""
    if dtype != "auto":
        return dtype
    return on_gpu if gpu else speeds().fastest


def resolve_precision(precision: Precision, *, gpu: bool) -> Literal["bf16", "fp32"]:
    """The precision of a fit: as configured; for `auto` bf16 on a GPU, or if it is the fastest type of this CPU."""
    if precision != "auto":
        return precision
    return "bf16" if gpu or speeds().fastest == "bfloat16" else "fp32"


def _from_json(found: dict[str, Any]) -> Speeds:
    """Parse the output of `measure`. Raises ValueError, KeyError or TypeError for anything else."""
    by_type, by_rows = dict(found["by_type"]), dict(found["by_rows"])
    return Speeds(
        cpu=str(found["cpu"]),
        cores=int(found["cores"]),
        native=tuple(found["native"]),
        by_type={one: float(by_type[one]) for one in (*TYPES, INT8)},
        by_rows={int(rows): float(value) for rows, value in by_rows.items()},
        busy=bool(found.get("busy")),
    )


def multiplies_int8() -> bool:
    """Whether the CPU accumulates products of 8-bit integers in 32 bits (VNNI, or Arm's dot product)."""
    return bool(_cpu()[1] & _INT8_FLAGS)


@lru_cache(maxsize=1)
def _cpu() -> tuple[str, frozenset[str]]:
    """The CPU's name and flags."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                return name, frozenset(value.split())
    except OSError:
        pass  # not Linux: no type is known to be native, so float32 is chosen
    return name, flags


def native_types() -> tuple[NumberType, ...]:
    """The types that this CPU computes without emulation."""
    flags = _cpu()[1]
    return ("float32", *(one for one in TYPES[1:] if flags & _NATIVE_FLAGS[one]))


def _fingerprint() -> str:
    name, flags = _cpu()
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = ""
    settings = [os.environ.get(one, "") for one in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS")]
    known = json.dumps([_VERSION, name, sorted(flags), cores(), torch, settings])
    return hashlib.sha256(known.encode()).hexdigest()[:12]


def measure() -> Speeds:
    """Run the benchmark. Imports torch, and sets its number of threads."""
    import torch
    from torch.utils.mkldnn import to_mkldnn

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    # vLLM's own backend, or the one of `inference.int8_kernel`.
    torch.backends.quantized.engine = "onednn" if multiplies_int8() else "fbgemm"

    def rate(one: str, rows: int, outer: int) -> float:
        layer: Any = torch.nn.Linear(_INNER, outer, bias=False)
        given = torch.randn(rows, _INNER)
        if one == INT8:
            layer = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear}, torch.qint8)
        else:
            dtype = getattr(torch, one)
            layer, given = layer.to(dtype), given.to(dtype)
            try:  # packed like vLLM's weights on a CPU, which is several times faster for few rows
                packed, rows_packed = to_mkldnn(layer, dtype), given.to_mkldnn()
                packed(rows_packed)
                layer, given = packed, rows_packed
            except RuntimeError:
                pass  # oneDNN does not support this type here
        layer(given)  # the first product chooses and compiles its kernel
        best, until = math.inf, time.perf_counter() + _TIMED_S
        while True:
            began = time.perf_counter()
            layer(given)
            now = time.perf_counter()
            best = min(best, now - began)  # other processes make a product slower, never faster
            if now >= until:
                return 2e-9 * rows * outer * _INNER / best

    began, used = time.perf_counter(), time.process_time()
    with torch.no_grad():
        by_type = {one: rate(one, _CHOOSING_ROWS, _CHOOSING_OUTER) for one in (*TYPES, INT8)}
        chosen = Speeds(_cpu()[0], cores(), native_types(), by_type, {})
        by_rows = {rows: rate(chosen.fastest, rows, _OUTER) for rows in _ROWS}
    busy = time.process_time() - used < _OWN_SHARE * cores() * (time.perf_counter() - began)
    return Speeds(chosen.cpu, chosen.cores, chosen.native, by_type, by_rows, busy)


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))
